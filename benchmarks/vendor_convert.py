"""The four vendors' own converters, default options, one after another: what users do today.

    python benchmarks/vendor_convert.py MODEL WEIGHTS.pt OUT

MODEL is timm's module of that name, unfolded, with the weights in WEIGHTS.pt; the input is already
normalised, NCHW, batch 1. Prints one JSON line: seconds of each conversion, imports apart.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

started = time.perf_counter()

import torch  # noqa: E402

from converters.refs.timm_zoo import import_timm  # noqa: E402


def main() -> None:
    name, weights, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    model = import_timm().create_model(name).eval()
    model.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    size = model.pretrained_cfg["input_size"][-1]
    example = (torch.rand(1, 3, size, size),)
    out.mkdir(parents=True, exist_ok=True)
    result = {"setup": time.perf_counter() - started, "imports": {}, "convert": {}}
    steps = {"executorch": executorch, "tflite": tflite, "coreml": coreml, "onnx": onnx}
    for target, prepare in steps.items():
        begun = time.perf_counter()
        convert = prepare()
        imported = time.perf_counter()
        with torch.no_grad():
            convert(model, example, out)
        result["imports"][target] = imported - begun
        result["convert"][target] = time.perf_counter() - imported
    print(json.dumps(result))


def executorch():
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    def convert(model, example, out):
        program = torch.export.export(model, example)
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        with (out / "model.pte").open("wb") as file:
            edge.to_executorch().write_to_file(file)

    return convert


def tflite():
    import litert_torch

    def convert(model, example, out):
        litert_torch.convert(model, example).export(str(out / "model.tflite"))

    return convert


def coreml():
    import coremltools as ct

    def convert(model, example, out):
        program = torch.export.export(model, example).run_decompositions({})
        ct.convert(program).save(str(out / "model.mlpackage"))

    return convert


def onnx():
    def convert(model, example, out):
        torch.onnx.export(model, example, out / "model.onnx", dynamo=True, external_data=False)

    return convert


if __name__ == "__main__":
    main()
