"""Test objects that more than one test file needs: random models and pictures that tell apart."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from converters.refs.network_file import write_network
from edgevit.models.shapes import Shape
from runtime.manifest import Preprocessing

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NORMS = (*BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)


def timm_name(name: str) -> str:
    """What timm calls a model of the zoo."""
    return f"{name}_patch16_224" if name.startswith(("vit_", "deit_")) else name


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and BatchNorm statistic a non-trivial value, the same for a seed.

    Default initialisation hides mistakes: zero gammas and tiny layer scales silence whole branches.
    Returns the model, changed in place.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, std: float) -> None:
        tensor.normal_(0.0, std, generator=generator)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.uniform_(low, high, generator=generator)

    for module in model.modules():
        parameters = dict(module.named_parameters(recurse=False))
        if isinstance(module, BATCH_NORMS):
            normal(module.running_mean, 0.2)
            uniform(module.running_var, 0.5, 1.5)
        for name, parameter in parameters.items():
            if name == "bias":
                normal(parameter, 0.1)
            elif isinstance(module, NORMS):
                uniform(parameter, 0.5, 1.5)
            elif name == "weight" and parameter.ndim > 1:
                normal(parameter, math.sqrt(1.5 / parameter[0].numel()))
            elif parameter.ndim == 1:  # layer scales
                uniform(parameter, 0.2, 0.8)
            else:  # attention biases, position embeddings, tokens
                normal(parameter, 0.5)
    return model


def pictures(count: int, size: int | tuple[int, int], seed: int) -> Tensor:
    """Normalised images (count, 3, H, W), each with its own colours, contrast and coarseness."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (size, size) if isinstance(size, int) else size
    images = []
    for index in range(count):
        image = torch.randn(1, 3, 1, 1, generator=generator)
        for cells in (2, 5 + index % 7, 60):
            noise = torch.randn(1, 3, cells, cells, generator=generator)
            strength = torch.rand(1, 3, 1, 1, generator=generator) * 1.5
            image = image + strength * F.interpolate(noise, (height, width), mode="bilinear")
        images.append(image)
    return torch.cat(images)


@torch.no_grad()
def settle_batch_norm(model: nn.Module, images: Tensor) -> nn.Module:
    """Let BatchNorm take its statistics from these images; leaves the model in eval mode.

    With made-up statistics a deep random network is nearly a constant function, and a comparison of
    its outputs proves nothing.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()


def error_over_spread(got: Tensor, want: Tensor) -> float:
    """Largest difference of outputs (B, ...) over the largest change of `want` between inputs."""
    spread = (want.amax(0) - want.amin(0)).max().item()
    assert spread > 0.1, f"the reference hardly depends on its input (spread {spread})"
    return (got - want).abs().max().item() / spread


def network_file(folder: Path, shape: Shape, side: int) -> str:
    """A model reference to a network of this shape: as a zoo name, but as small as one likes."""
    about = Preprocessing(
        mean=[0.5] * 3,
        std=[0.5] * 3,
        height=side,
        width=side,
        crop_pct=1.0,
        interpolation="bicubic",
    )
    path = folder / "network.yaml"
    write_network(
        path, shape, input_size=side, classes=100, preprocessing=about, made_from="a test"
    )
    return str(path)
