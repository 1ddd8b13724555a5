"""What a process that converts many small networks need not do anew for each.

Like converters/worker_speed.py it changes nothing that is written.
"""

from __future__ import annotations

from functools import cache
from typing import Any


def look_up_once(target: str) -> None:
    """Keep what torch looks up for every export and what stays the same between two.

    torch walks all operators that the dispatcher knows, for every namespace and export, so that
    Python knows them too; that is done again only where the dispatcher knows others than last time.
    Its ONNX exporter parses the source of its whole library of operators for every model.
    """
    import torch
    from torch._export import utils

    materialize, done = utils._materialize_cpp_cia_ops, list[list[str]]()

    def materialize_new() -> None:
        known = torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd")
        if done[-1:] != [known]:
            materialize()
            done[:] = [known]

    utils._materialize_cpp_cia_ops = materialize_new
    if target == "onnx":
        from torch.onnx._internal.exporter import _registration

        registry: Any = _registration.ONNXRegistry
        registry.from_torchlib = staticmethod(cache(registry.from_torchlib))
