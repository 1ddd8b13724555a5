"""Convert a model of the zoo and read what was proven about it.

    python examples/convert_zoo_model.py [MODEL] [OUT]

With a checkpoint of your own: ConvertOptions(weights=Path("shvit_s1.pth")).
"""

import sys
from pathlib import Path

from converters.pipeline import ConvertOptions, convert


def main(model: str = "shvit_s1", out: str = "out/shvit_s1") -> None:
    manifest = convert(model, Path(out), ConvertOptions(targets=["onnx", "tflite"], force=True))

    print(f"{manifest.model.ref}: weights {manifest.model.weights}")
    print(f"folding: {manifest.reparam.rules}")
    for target, artifact in manifest.artifacts.items():
        check = artifact.verification
        print(f"{target}: {artifact.file}, {artifact.size_bytes / 1e6:.1f} MB, {check.status}")
        print(f"  error over spread {check.error_over_spread:.1e} on {check.prover}")


if __name__ == "__main__":
    main(*sys.argv[1:])
