"""Pictures as bundles keep them, brought into the form an artefact takes."""

from __future__ import annotations

import numpy as np

from runtime.errors import RuntimeFault
from runtime.manifest import Preprocessing, TensorSpec
from runtime.sessions.base import Array, takes


def to_input(picture_HWC: Array, spec: TensorSpec) -> Array:
    """One picture (H,W,3), float32 in [0,1] or uint8, as the batch of one that `spec` asks for.

    uint8 and float forms convert by the factor 255. Raises RuntimeFault where the shape does not
    fit, or where the artefact takes another integer, whose scale only its maker knows.
    """
    x_BHWC = picture_HWC[None]
    x = np.transpose(x_BHWC, (0, 3, 1, 2)) if spec.layout == "NCHW" else x_BHWC
    if not takes(spec, x.shape):
        raise RuntimeFault(
            f"input '{spec.name}': the artefact takes {spec.shape}"
            f" ({spec.layout or 'unknown layout'}), the picture gives {list(x.shape)}"
        )
    wants = np.dtype(spec.dtype)
    if wants.kind != "f" and wants != np.uint8:
        raise RuntimeFault(
            f"input '{spec.name}': the artefact takes {spec.dtype}, a picture gives float32 or "
            "uint8; convert it with a float32 or uint8 input"
        )
    if x.dtype == np.uint8 and wants.kind == "f":
        x = x.astype(np.float32) / 255
    elif x.dtype.kind == "f" and wants == np.uint8:
        x = np.rint(np.clip(x, 0, 1) * 255)
    return np.ascontiguousarray(x, dtype=wants)


def as_it_is(height: int, width: int) -> Preprocessing:
    """The preprocessing where nothing is known: RGB as it is, no mean and std, no crop. Pixels."""
    return Preprocessing(
        mean=[0.0] * 3, std=[1.0] * 3, height=height, width=width, crop_pct=1.0,
        interpolation="bicubic",
    )  # fmt: skip


def plain_preprocessing(spec: TensorSpec) -> Preprocessing:
    """For an artefact that no manifest describes: the whole picture, RGB as it is, not cropped.

    Raises RuntimeFault where the artefact takes no picture.
    """
    if spec.layout is None:
        raise RuntimeFault(f"the artefact takes {spec.shape}, expected one RGB picture")
    height, width = spec.shape[2:] if spec.layout == "NCHW" else spec.shape[1:3]
    return as_it_is(height, width)


def random_input(spec: TensorSpec, seed: int = 0) -> Array:
    """A seeded random batch for `spec`: uniform in [0,1], or in [0,255] where it takes integers.

    Where the artefact takes any number of rows the batch has one.
    """
    x = np.random.default_rng(seed).random(spec.shape_of(1), dtype=np.float32)
    wants = np.dtype(spec.dtype)
    if wants.kind in "iu":
        top = min(np.iinfo(wants).max, 255)
        return np.floor(x * (top + 1)).astype(wants)
    return x.astype(wants)
