"""One ViT on three devices, of which one goes and comes back. All of them are this machine.

    python examples/cluster_demo.py [OUT] [--epochs N]

Trains a small ViT on handwritten digits, splits it, launches three agents and a coordinator, asks,
ends an agent, asks again, launches it again, and writes the cluster's latency report to
OUT/cluster.html. Every step is a command that is printed before it runs. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from edgevit.data import open_splits

HERE = Path(__file__).parent
MODEL = "small_vit:digits_vit"
LOST = "hall"
CLUSTER = """\
devices:
  - {name: kitchen, compute: 2 GMAC/s, memory: 600KiB, targets: [onnx]}
  - {name: hall, compute: 2 GMAC/s, memory: 600KiB, targets: [tflite]}
  - {name: garage, compute: 1 GMAC/s, memory: 600KiB, targets: [onnx]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="One ViT on three devices.")
    parser.add_argument("out", nargs="?", type=Path, default=Path("demo/cluster"))
    parser.add_argument("--epochs", type=int, default=25, help="Of the ViT; its parts need fewer.")
    given = parser.parse_args()
    demonstrate(given.out, given.epochs, max(1, given.epochs * 3 // 5))


def demonstrate(out: Path, epochs: int, part_epochs: int) -> None:
    """All of it; whatever happens, nothing that was launched is left."""
    out.mkdir(parents=True, exist_ok=True)
    cluster, plan, digit = out / "cluster.yaml", out / "plan", out / "digit.png"
    cluster.write_text(CLUSTER, encoding="utf-8")
    picture, label = open_splits("digits")[1][0]
    Image.fromarray(picture).resize((48, 48)).save(digit)

    edgevit("train", MODEL, "--data", "digits", "--epochs", epochs, "-o", out / "ckpt")
    edgevit(
        "partition", MODEL, "--weights", out / "ckpt" / "model.safetensors", "--data", "digits",
        "--cluster", cluster, "--epochs", part_epochs, "--fusion-epochs", part_epochs,
        "-o", plan, "--force",
    )  # fmt: skip
    try:
        edgevit("cluster", "launch", plan, "--listen", "127.0.0.1:0")
        say(f"The picture shows a {label}.")
        edgevit("cluster", "predict", plan, digit)
        say(f"Now the device '{LOST}' loses its power.")
        end_agent(plan)
        edgevit("cluster", "predict", plan, digit)
        edgevit("cluster", "status", plan, codes=(1,))
        say("It is started again; the coordinator finds it by itself.")
        edgevit("cluster", "launch", plan, "--listen", "127.0.0.1:0")
        edgevit("cluster", "predict", plan, digit)
        edgevit("cluster", "bench", plan, "-o", out / "cluster.html")
    finally:
        edgevit("cluster", "stop", plan)
    say(f"report: {out / 'cluster.html'}")


def edgevit(*words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run a verb where MODEL is found; ends the demo where it ends otherwise than expected."""
    command = [sys.executable, "-m", "edgevit", *map(str, words)]
    say(f"$ edgevit {shlex.join(command[3:])}")
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    code = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
    if code not in codes:
        raise SystemExit(f"edgevit {words[0]} ended with exit code {code}")


def end_agent(plan: Path) -> None:
    """SIGKILL, as when the power goes; the process is the one that `launch` wrote down."""
    state: dict[str, Any] = json.loads((plan.with_name("plan.cluster") / "state.json").read_text())
    recorded = state["devices"][LOST]["process"]
    process = psutil.Process(recorded["pid"])
    assert process.create_time() == recorded["created"]
    process.kill()
    process.wait(10)


def say(text: str) -> None:
    """On stdout, after what was said before."""
    sys.stdout.write(f"\n{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
