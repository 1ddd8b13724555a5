"""From a model reference to a torch module in evaluation, with what is known about its input.

The grammar: a zoo name (`shvit_s1`), `timm:NAME`, `package.module:factory`, or a module itself.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from converters.errors import ConvertError
from runtime.errors import missing_extra
from runtime.manifest import Preprocessing

SEED = 0

# A parameter whose values lie closer together than this was initialised to a constant.
ALL_ALIKE = 1e-3

# The smallest settled variance of a channel, over the mean of its layer's.
LEAST_VARIANCE = 0.1


@dataclass(frozen=True)
class Source:
    """A torch module ready to export, and its provenance.

    weights is 'random, seed 0', 'given' (a module that came as it is) or the file's name.
    """

    ref: str
    module: nn.Module
    preprocessing: Preprocessing
    num_classes: int
    family: str | None
    weights: str
    weights_sha256: str
    trained: bool
    notes: tuple[str, ...] = ()


def load_source(
    model: str | nn.Module,
    *,
    weights: Path | None = None,
    size: int | None = None,
    classes: int | None = None,
    input_dtype: str = "float32",
) -> Source:
    """Build the module, load its weights, set it to evaluation.

    size is the input's height and width in pixels, classes the number of logits. Without weights a
    zoo or timm model is random, seeded, with its BatchNorm statistics settled on pictures: fit for
    latency, not for accuracy, and the manifest says so. Raises ConvertError, ModelError.
    """
    if size is not None and size < 1:
        raise ConvertError(f"--size must be a positive number of pixels, got {size}")
    if input_dtype not in ("float32", "uint8"):
        raise ConvertError(f"--input must be float32 or uint8, got '{input_dtype}'")
    if isinstance(model, nn.Module):
        source = _from_module(model, type(model).__name__, size)
    elif model.startswith("timm:"):
        source = _from_timm(model, size, classes)
    elif ":" in model:
        source = _from_factory(model, size)
    else:
        source = _from_zoo(model, size, classes)
    if weights is not None:
        from edgevit.models import load_weights

        load_weights(source.module, weights, source.family)
        source = replace(source, weights=weights.name, trained=True)
    elif source.weights.startswith("random"):
        _settle(source)
    if classes is not None and source.num_classes != classes:
        raise ConvertError(
            f"'{source.ref}' has {source.num_classes} classes and --classes says {classes}; "
            "a module of your own sets its class count itself"
        )
    return replace(
        source,
        module=source.module.eval(),
        preprocessing=source.preprocessing.model_copy(
            update={
                "input_dtype": input_dtype,
                "input_range": (0.0, 255.0) if input_dtype == "uint8" else (0.0, 1.0),
            }
        ),
        weights_sha256=state_digest(source.module),
    )


def state_digest(module: nn.Module) -> str:
    """sha256 over names, shapes and bytes of the state dict, in name order."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _from_zoo(name: str, size: int | None, classes: int | None) -> Source:
    from edgevit.models import create_model, model_config

    config = model_config(name)
    classes = 1000 if classes is None else classes
    with _seeded():
        module = create_model(name, num_classes=classes)
    side = size or config.input_size
    preprocessing = Preprocessing(
        mean=list(config.mean),
        std=list(config.std),
        height=side,
        width=side,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
    )
    weights = f"random, seed {SEED}"
    return Source(name, module, preprocessing, classes, config.family, weights, "", False)


def _from_timm(ref: str, size: int | None, classes: int | None) -> Source:
    from edgevit.models.registry import nearest_names

    try:
        timm = _import_timm()
    except ImportError as error:
        raise missing_extra(f"'{ref}'", "timm", "timm") from error
    name = ref.removeprefix("timm:")
    try:
        with _seeded():
            module: nn.Module = timm.create_model(
                name, pretrained=False, **({"num_classes": classes} if classes else {})
            )
    except RuntimeError as error:  # timm's word for an unknown name
        near = nearest_names(name, timm.list_models())
        hint = f"; did you mean {', '.join(f'timm:{n}' for n in near)}?" if near else ""
        raise ConvertError(f"timm cannot build '{name}': {error}{hint}") from error
    preprocessing = _from_cfg(module.pretrained_cfg, size)  # type: ignore[arg-type]
    weights = f"random, seed {SEED}"
    return Source(ref, module, preprocessing, int(module.num_classes), None, weights, "", False)  # type: ignore[arg-type]


def _import_timm() -> Any:
    """timm, also where torchvision's compiled ops do not load beside a CPU build of torch."""
    try:
        return importlib.import_module("timm")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n.split(".")[0] in ("torchvision", "timm")]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for op in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call]
            f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    _KEPT_ALIVE.append(library)
    return importlib.import_module("timm")


_KEPT_ALIVE: list[Any] = []


def _from_factory(ref: str, size: int | None) -> Source:
    module_name, _, attribute = ref.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # `edgevit` is a script: the user's own file lies in his folder
    try:
        owner = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConvertError(
            f"cannot import '{error.name}' for model '{ref}': expected package.module:factory "
            "with the package on the path or in this folder"
        ) from error
    except Exception as error:
        raise ConvertError(f"importing '{module_name}' failed: {_told(error)}") from error
    factory: Callable[[], Any] | None = getattr(owner, attribute, None)
    if factory is None:
        names = [n for n in dir(owner) if not n.startswith("_")]
        raise ConvertError(f"'{module_name}' has no '{attribute}'; it has: {', '.join(names[:12])}")
    try:
        built = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise ConvertError(f"calling '{ref}' without arguments failed: {_told(error)}") from error
    if not isinstance(built, nn.Module):
        raise ConvertError(f"'{ref}' gave a {type(built).__name__}, expected a torch.nn.Module")
    return _from_module(built, ref, size)


def _from_module(module: nn.Module, ref: str, size: int | None) -> Source:
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    notes: tuple[str, ...] = ()
    if isinstance(cfg, dict) and "mean" in cfg:
        preprocessing = _from_cfg(cfg, size)
    else:
        notes = ("no pretrained_cfg on the module: no mean and std, the input goes in as it is",)
        side = size or 224
        preprocessing = Preprocessing(
            mean=[0.0] * 3, std=[1.0] * 3, height=side, width=side, crop_pct=1.0,
            interpolation="bicubic",
        )  # fmt: skip
    module = module.eval()
    out = _run(ref, module, torch.zeros(1, 3, preprocessing.height, preprocessing.width))
    if not isinstance(out, Tensor) or out.dim() != 2 or len(out) != 1:
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConvertError(f"'{ref}' must give logits of shape (1, classes), got {got}")
    return Source(ref, module, preprocessing, int(out.shape[1]), None, "given", "", True, notes)


def _run(ref: str, module: nn.Module, x_BCHW: Tensor) -> Any:
    """The module's output; what it raises as a ConvertError that says what went in."""
    try:
        with torch.no_grad():
            return module(x_BCHW)
    except Exception as error:
        if hasattr(error, "exit_code"):  # an error of ours from inside the model
            raise
        raise ConvertError(
            f"'{ref}' does not take pictures of shape {tuple(x_BCHW.shape)}: {_told(error)}. "
            "--size sets their height and width"
        ) from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:500]}"


@contextmanager
def _seeded() -> Iterator[None]:
    """Random weights from SEED; the caller's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        yield


def _from_cfg(cfg: dict[str, Any], size: int | None) -> Preprocessing:
    channels, height, width = cfg.get("input_size", (3, 224, 224))
    if channels != 3:
        raise ConvertError(f"the model takes {channels} channels, expected 3 (RGB)")
    return Preprocessing(
        mean=[float(m) for m in cfg["mean"]],
        std=[float(s) for s in cfg["std"]],
        height=size or height,
        width=size or width,
        crop_pct=float(cfg.get("crop_pct") or 1.0),
        interpolation=str(cfg.get("interpolation") or "bicubic"),
    )


def _settle(source: Source) -> None:
    """Give a random network parameters and BatchNorm statistics under which its pictures matter.

    The default initialisation has zero gammas and zero attention biases, which let converters fold
    whole branches away, and statistics that make the output nearly constant: sizes, latencies and
    errors would mean nothing.
    """
    from converters.pictures import generated, photos

    module, pre = source.module.eval(), source.preprocessing
    draw = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, value in module.named_parameters():
            is_vector = value.numel() == max(value.shape, default=1)
            if value.dim() != 1 and float(value.max() - value.min()) > ALL_ALIKE:
                continue
            if value.dim() == 1 and name.endswith("bias"):
                value.copy_(torch.randn(value.shape, generator=draw) * 0.1)
            elif is_vector:  # gammas and layer scales, also as (C, 1, 1)
                value.copy_(torch.rand(value.shape, generator=draw) * 0.6 + 0.4)
            else:  # tables of attention biases, and weights that start at zero
                value.copy_(torch.randn(value.shape, generator=draw) * value[0].numel() ** -0.5)
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [n.momentum for n in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the statistics of the one batch
        norm.train()
        if norm.affine:
            # More of each channel above zero, where ReLU is straight: behind a hundred layers that
            # bend at their mean, float32 rounding has grown 1.2 times a layer and is all there is.
            norm.bias.data.add_(0.5 * norm.weight.data)
    mean = torch.tensor(pre.mean).reshape(1, 3, 1, 1)
    std = torch.tensor(pre.std).reshape(1, 3, 1, 1)
    # One batch: the averages of two would leave out how far photos and drawn pictures are apart.
    drawn = generated(3, pre.height, pre.width, seed=1)
    batch = np.concatenate([photos(pre.height, pre.width)[:3], drawn])
    x_BCHW = torch.from_numpy(batch).permute(0, 3, 1, 2)
    _run(source.ref, module, (x_BCHW - mean) / std)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.running_var is not None:
            # A channel that these few pictures hardly move would be blown up by the next one, layer
            # after layer, until float32 is noise.
            norm.running_var.clamp_(min=LEAST_VARIANCE * float(norm.running_var.mean()))
