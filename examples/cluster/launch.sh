#!/bin/sh
# A plan on its devices with nothing but `edgevit agent`, the coordinator and ssh: to read, and to
# change into what you need. `edgevit cluster launch` does this too, and minds what goes wrong.
#
#   launch.sh PLAN PHOTO [DEVICE=[USER@]HOST]...
#
# Every device that the plan uses gets an agent: on this machine, or on HOST, where it listens to
# nobody but its own machine and is reached through a tunnel of ssh. The bundles go there, the
# coordinator starts, it is asked for PHOTO once, and all of it is ended again.
set -eu

PYTHON=${PYTHON:-python3}                   # here, with edgevit
EDGEVIT=${EDGEVIT:-edgevit}                 # on every HOST: a command there
THERE=${THERE:-.local/share/edgevit/launch} # on every HOST: where its bundles are kept
PORT=${PORT:-18000}                         # of the coordinator; agents have the next, there 1000 on
KEEP=${KEEP:-}                              # 1: serve until Ctrl-C
PATIENCE=${PATIENCE:-60}                    # seconds for each to be ready

die() {
    echo "launch.sh: $*" >&2
    exit 1
}

[ $# -ge 2 ] || die "expected launch.sh PLAN PHOTO [DEVICE=[USER@]HOST]..."
plan=$1 photo=$2
shift 2
hosts=$*
here=$(cd "$(dirname "$0")" && pwd)
[ -f "$plan/plan.json" ] || die "$plan is no plan: make one with edgevit partition"
[ -f "$photo" ] || die "there is no picture $photo"

# Whatever happens from here on, no process and no file of ours is left.
work=$(mktemp -d)
pids=
tidy() {
    status=$?
    trap '' INT TERM HUP
    # The last one may have been started, and not be among them yet.
    for pid in $pids ${!:-}; do kill "$pid" 2>/dev/null || :; done
    for pid in $pids ${!:-}; do wait "$pid" 2>/dev/null || :; done
    rm -rf "$work"
    exit "$status"
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Started in the background, what it says goes to a file; ready when a word of it is there.
ready() { # WHO WORD
    count=0
    until grep -qs "$2" "$work/$1.out"; do
        case $(ps -o stat= -p "$pid") in
            '' | Z*) die "$1 ended: $(tail -n 5 "$work/$1.out")" ;;
        esac
        count=$((count + 1))
        [ "$count" -le "$PATIENCE" ] || die "$1 is not ready: $(tail -n 5 "$work/$1.out")"
        sleep 1
    done
}

# Lines of: device, target, its bundles.
"$PYTHON" - "$plan" >"$work/devices" <<'END'
import json, sys
plan = json.load(open(f"{sys.argv[1]}/plan.json"))
for device in plan["devices"]:
    own = [s for s in plan["submodels"] if device["name"] in (s["primary"], *s["replicas"])]
    if own:
        print(device["name"], device["target"], *(s["bundle"] for s in own))
END
for pair in $hosts; do
    grep -q "^${pair%%=*} " "$work/devices" || die "the plan uses no device ${pair%%=*}"
done

port=$PORT
addresses=
while read -r name target bundles <&3; do
    port=$((port + 1))
    host=
    for pair in $hosts; do
        [ "${pair%%=*}" != "$name" ] || host=${pair#*=}
    done
    if [ -z "$host" ]; then
        "$PYTHON" -m edgevit agent --listen "127.0.0.1:$port" --store "$work/$name" \
            --name "$name" --json >"$work/$name.out" 2>&1 </dev/null &
    else
        # A terminal (-tt), so that the agent ends with the connection. Its store stays there, and
        # what is in it is not sent again.
        there=$((port + 1000))
        ssh -tt -o BatchMode=yes -o ConnectTimeout=10 -o ExitOnForwardFailure=yes \
            -L "127.0.0.1:$port:127.0.0.1:$there" -- "$host" \
            "exec $EDGEVIT agent --listen 127.0.0.1:$there --store $THERE/$name --name $name --json" \
            >"$work/$name.out" 2>&1 </dev/null &
    fi
    pid=$!
    pids="$pid $pids"
    ready "$name" '"device_id"'
    for bundle in $bundles; do
        "$PYTHON" "$here/bring.py" "127.0.0.1:$port" "$plan/$bundle" "$target"
    done
    addresses="$addresses --device $name=127.0.0.1:$port"
    echo "$name ($(echo "$bundles" | sed 's/ /, /g')) ${host:-here}"
done 3<"$work/devices"

# $addresses is words.
"$PYTHON" -m partition.coordinator_main "$plan" --listen "127.0.0.1:$PORT" $addresses \
    >"$work/coordinator.out" 2>&1 </dev/null &
pid=$!
pids="$pid $pids"
ready coordinator '"plan_digest"'

"$PYTHON" "$here/ask.py" "127.0.0.1:$PORT" "$photo"
if [ -n "$KEEP" ]; then
    echo "serving at 127.0.0.1:$PORT until Ctrl-C"
    wait "$pid"
fi
