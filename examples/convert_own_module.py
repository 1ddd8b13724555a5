"""Convert a torch module of your own: any classifier that takes one RGB picture.

    python examples/convert_own_module.py [OUT]

`pretrained_cfg` tells the converter which normalisation to put inside the artefact; without it the
picture goes in as it is, RGB in [0, 1].
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from converters.pipeline import ConvertOptions, convert


class Block(nn.Module):
    """A residual depthwise convolution with BatchNorm: folds into one convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU())
        self.out = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.conv(x))
        return x + self.out(self.mlp(x))


class TinyNet(nn.Module):
    pretrained_cfg = {  # noqa: RUF012  # the convention of timm
        "input_size": (3, 64, 64),
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    }

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 4, stride=4)
        self.blocks = nn.Sequential(*[Block(32) for _ in range(3)])
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def main(out: str = "out/tinynet") -> None:
    torch.manual_seed(0)
    model = TinyNet().eval()
    manifest = convert(model, Path(out), ConvertOptions(targets="onnx,executorch", force=True))
    proof = manifest.reparam
    print(f"graph: {proof.nodes_before} to {proof.nodes_after} ops, {proof.rules}")
    for target, artifact in manifest.artifacts.items():
        check = artifact.verification
        print(f"{target}: {check.status}, error over spread {check.error_over_spread:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
