"""Why `--precision fp16` is refused on ExecuTorch: XNNPACK's float16 graph against torch.

    python benchmarks/fp16_executorch.py [--model efficientformer_l1] [--out docs/results/fp16-executorch.md]

The same half-precision program (float16 inside, float32 at its ends) on ExecuTorch and on ONNX
Runtime, compared with torch in float32 over the spread of the outputs between the inputs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from result_page import publish

from converters.export import export_folded, export_source
from converters.lower import Job, lower_to
from converters.lower.half import half_inside
from converters.pictures import proof_pictures
from converters.reparam import reparameterize
from converters.source import load_source
from runtime.compare import agreement
from runtime.inputs import to_input
from runtime.sessions import open_session


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="efficientformer_l1")
    parser.add_argument("--out", default="docs/results/fp16-executorch.md")
    options = parser.parse_args()
    source = load_source(options.model)
    pictures = proof_pictures(source.preprocessing.height, source.preprocessing.width)
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
    folded = reparameterize(export_source(source), x_BCHW)
    program = export_folded(folded.module, x_BCHW[:1])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for target, name in (("executorch", "model.pte"), ("onnx", "model.onnx")):
            file = Path(folder) / name
            lower_to(target, half_inside(program), Job(file, "fp32", *pictures.shape[1:3]))
            session = open_session(file, threads=1)
            got = np.concatenate([session.run(to_input(p, session.input)) for p in pictures])
            found = agreement(folded.outputs.numpy(), got)
            rows.append(
                f"| {target} | {found.error_over_spread:.4f} | {found.cosine_centred:.6f} | "
                f"{found.top1_agreement:.2f} |"
            )
            session.close()
    publish(
        options.out,
        "float16 on ExecuTorch's XNNPACK delegate",
        f"python benchmarks/fp16_executorch.py --model {options.model}",
        "The same float16 program on two engines. On this CPU, which has no float16 arithmetic, the "
        "delegate answers without any error, and wrongly. It may be right on an Arm CPU with float16 "
        "arithmetic; as long as no machine at hand can prove it, `convert` refuses.",
        [
            "| engine | error / spread | centred cosine | top-1 agreement |",
            "|---|---|---|---|",
            *rows,
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
