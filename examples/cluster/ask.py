"""Ask a coordinator what is in a picture: ask.py HOST:PORT PHOTO.

All that it needs to know of the model, the coordinator tells.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from edgevit.data import DataError, prepare, read_picture
from runtime.client import AgentClient
from runtime.errors import RuntimeFault
from runtime.inputs import to_input
from runtime.predict import likeliest


def ask(address: str, photo: Path) -> None:
    """Print the likeliest class, and what did not answer."""
    with AgentClient(address) as coordinator:
        model = coordinator.index()[0].name  # the others are its workers
        told = coordinator.model_metadata(model)
        form = json.loads(told.properties["preprocessing"])
        picture_HWC = prepare(
            read_picture(photo, upright=True),
            form["height"], form["width"], form["crop_pct"], form["interpolation"],
        )  # fmt: skip
        (spec,) = told.inputs
        spec = replace(spec, layout="NCHW" if spec.shape[1] == 3 else "NHWC")
        answer = coordinator.infer(model, to_input(picture_HWC, spec))
    (best,) = likeliest(answer.output[0], json.loads(told.properties["labels"]), 1)
    print(f"{photo}: {best.label}, {best.probability:.1%}")
    if answer.parameters["degraded"]:
        print(f"degraded, without {answer.parameters['missing']}")


if __name__ == "__main__":
    try:
        ask(sys.argv[1], Path(sys.argv[2]))
    except (DataError, RuntimeFault) as error:
        sys.exit(f"ask.py: {error}")
