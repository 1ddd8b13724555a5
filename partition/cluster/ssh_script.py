"""What is run on a device over ssh, for its POSIX sh: start an agent, or end the one we started.

Nothing is needed there but sh, the usual small tools and edgevit. It comes over stdin, with all
that it needs to know, so that no secret is on a command line and no login shell reads a word of it.
Its answer is lines that begin with `@`; whatever else a login prints is passed over.

    STORE/NAME/  store/ (the agent's)  agent.pid  agent.json  agent.log  agent.log.1  token
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

# A process is ours by what agent.pid says of it (its number, and the mark of who started it) and by
# its command line, which names our store: numbers are given again. A zombie has no command line.
_HEAD = r"""
umask 077
say() { printf '@edgevit %s\n' "$*"; }
fail() { say failed "$@"; exit 0; }
nap() {
    if sleep 0.2 2>/dev/null; then count=$((count + 1)); else sleep 1; count=$((count + 5)); fi
}
ours() {
    if [ -r "/proc/$1/cmdline" ]; then
        tr '\0' '\n' <"/proc/$1/cmdline" 2>/dev/null | grep -Fqx -e "$folder/store"
    else
        ps -p "$1" -o args= 2>/dev/null | grep -Fq -e "$folder/store"
    fi
}
holder() {
    pid= there=
    [ -r "$folder/agent.pid" ] && read -r pid there <"$folder/agent.pid"
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    [ "$pid" -gt 1 ] && ours "$pid"
}
last_words() {
    sed 's/^/@facts /' "$folder/agent.json" 2>/dev/null
    tail -n 40 "$folder/agent.log" 2>/dev/null | sed 's/^/@log /'
    df -Pk "$folder" 2>/dev/null | sed -n '2s/^/@df /p'
}
"""

# The gate is the process that becomes the agent. It writes its own number down, where no other is
# written, before it runs anything: a start that is cut off leaves no agent that nobody can end.
_START = r"""
gate='folder=$1 mark=$2
shift 2
set -C
echo "$$ $mark" >"$folder/agent.pid" || exit 75
set +C
rm -f "$folder/agent.json"
[ ! -s "$folder/agent.log" ] || mv -f "$folder/agent.log" "$folder/agent.log.1"
exec "$@" >"$folder/agent.json" 2>"$folder/agent.log"'

main() {
    case $program in
        '~/'*) program=$HOME/${program#??} ;;
        /*) ;;
        */*) program=$HOME/$program ;;
        *) PATH=$PATH:$HOME/.local/bin:/usr/local/bin ;;
    esac
    command -v "$program" >/dev/null 2>&1 || fail nocommand "$PATH"
    unset EDGEVIT_TOKEN_FILE
    kind=running
    if ! holder; then
        kind=started
        mkdir -p "$folder" || fail folder
        # With what the last one said of itself, or that would be taken for the new one's word.
        rm -f "$folder/agent.pid" "$folder/agent.json" "$folder/token"
        if [ -n "$token" ]; then
            set -- "$@" --token-file "$folder/token"
            cat >"$folder/token" <<END || fail folder
$token
END
        fi
        launcher=nohup
        command -v setsid >/dev/null 2>&1 && launcher=setsid
        "$launcher" sh -c "$gate" sh "$folder" "$mark" \
            "$program" agent --store "$folder/store" "$@" </dev/null >/dev/null &
        pid=$!
    fi
    count=0
    until [ "$(tail -n 1 "$folder/agent.json" 2>/dev/null)" = '}' ]; do
        if ! ours "$pid"; then
            nap
            if ! ours "$pid"; then
                holder || { say failed died; last_words; exit 0; }
                kind=running
            fi
        fi
        [ "$count" -lt "$most" ] || { say failed slow; last_words; exit 0; }
        nap
    done
    say "$kind" "$pid"
    sed 's/^/@facts /' "$folder/agent.json"
}
"""

_END = r"""
main() {
    holder && [ "$there" = "$mark" ] || { say gone; exit 0; }
    kill -TERM "$pid"
    count=0
    while ours "$pid" && [ "$count" -lt "$most" ]; do nap; done
    if ours "$pid"; then
        kill -KILL "$pid"
        count=0
        while ours "$pid" && [ "$count" -lt 50 ]; do nap; done
        ! ours "$pid" || fail stays "$pid"
    fi
    rm -f "$folder/agent.pid" "$folder/agent.json" "$folder/token"
    say ended "$pid"
}
"""

_PLACE = r"""
cd "$HOME" || fail folder
case $place in
    '~/'*) place=$HOME/${place#??} ;;
    /*) ;;
    *) place=$HOME/$place ;;
esac
folder=$place/$name
main "$@"
exit 0
"""


def starting(
    place: str, name: str, mark: str, seconds: float, program: str, token: str, words: Sequence[str]
) -> str:
    """Start `program agent WORDS` on the store of `name`, or find it running; wait until ready.

    mark tells our process from another's. Answers `started PID` or `running PID` with the agent's
    facts, or `failed WHY`.
    """
    given = {"program": program, "token": token}
    return _script(_START, place, name, mark, seconds, given, words)


def ending(place: str, name: str, mark: str, seconds: float) -> str:
    """End the agent of that mark: SIGTERM, then SIGKILL after some seconds. `ended PID`, `gone`."""
    return _script(_END, place, name, mark, seconds, {}, ())


def _script(
    body: str,
    place: str,
    name: str,
    mark: str,
    seconds: float,
    given: Mapping[str, str],
    words: Sequence[str],
) -> str:
    values = {"place": place, "name": name, "mark": mark, "most": str(int(5 * seconds)), **given}
    told = "".join(f"{key}={shlex.quote(value)}\n" for key, value in values.items())
    # In braces: nothing runs before all of it has come, however the connection ends.
    return f"{{\n{told}set -- {shlex.join(words)}\n{_HEAD}{body}{_PLACE}}}\n"
