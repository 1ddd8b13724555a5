"""`package.module:factory`, or a torch module itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn

from converters.errors import ConvertError
from converters.refs.base import Source, class_count, from_cfg, told
from converters.refs.grammar import GIVEN
from runtime.inputs import as_it_is

SIDE = 224
AS_IT_IS = "no pretrained_cfg on the module: no mean and std, the input goes in as it is"


def from_factory(ref: str, size: int | None) -> Source:
    """Import `package.module`, call `factory` without arguments; size is in pixels.

    Raises ConvertError.
    """
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
        raise ConvertError(f"importing '{module_name}' failed: {told(error)}") from error
    factory: Callable[[], Any] | None = getattr(owner, attribute, None)
    if factory is None:
        names = [n for n in dir(owner) if not n.startswith("_")]
        near = get_close_matches(attribute, names, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ConvertError(
            f"'{module_name}' has no '{attribute}'; it has: {', '.join(names[:12])}.{hint}"
        )
    try:
        built = factory() if callable(factory) and not isinstance(factory, nn.Module) else factory
    except Exception as error:
        raise ConvertError(f"calling '{ref}' without arguments failed: {told(error)}") from error
    if not isinstance(built, nn.Module):
        raise ConvertError(f"'{ref}' gave a {type(built).__name__}, expected a torch.nn.Module")
    return from_module(built, ref, size)


def from_module(module: nn.Module, ref: str, size: int | None) -> Source:
    """A module with the weights it has, set to evaluation; size is in pixels. Raises ConvertError.

    Its input is what its `pretrained_cfg` (timm's convention) says, where it has one.
    """
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    notes: tuple[str, ...] = ()
    if isinstance(cfg, dict) and "mean" in cfg:
        preprocessing = from_cfg(cfg, size)
    else:
        notes = (AS_IT_IS,)
        preprocessing = as_it_is(size or SIDE, size or SIDE)
    module = module.eval()
    classes = class_count(ref, module, preprocessing.height, preprocessing.width)
    return Source(ref, module, preprocessing, classes, None, GIVEN, "", True, notes)
