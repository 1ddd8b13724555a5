"""Where in a model's own code torch gave up, and what to try."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getattr_static
from pathlib import Path
from types import FrameType, FunctionType

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

TORCH = str(Path(torch.__file__).parent)
LONGEST = 300

DATA = re.compile(r"data-dependent|DataDependent|DynamicOutputShape|unbacked", re.IGNORECASE)
READ_OUT = re.compile(r"\.item\(|\.tolist\(|\bint\(|\bfloat\(|\brange\(")
BRANCH = re.compile(r"\b(if|elif|while|assert|and|or|not|bool)\b")

READ_OUT_ADVICE = (
    "a number is read out of a tensor (.item(), int(), .tolist(), range() of a tensor): keep it a "
    "tensor, or make it a constant of the module"
)
BRANCH_ADVICE = (
    "a branch depends on the values of a tensor, and a graph has no branches: compute both sides "
    "and choose with torch.where, or decide by shapes or by a setting of the module"
)
SHAPE_ADVICE = (
    "a shape depends on the values of a tensor (a mask as an index, nonzero, unique): multiply by "
    "the mask or use torch.where, so that every shape is fixed by the input's"
)
# What torch says about causes other than the data, and what helps.
ADVICE: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"numpy", re.IGNORECASE),
        "numpy leaves the graph: use the torch function of the same purpose",
    ),
    (
        re.compile(r"data_ptr|data pointer|register_fake|fake impl|meta kernel", re.IGNORECASE),
        "a compiled extension reads the tensor's memory: use torch's own ops in its place, or give "
        "its op a fake implementation (torch.library.register_fake)",
    ),
    (
        re.compile(r"FakeTensor|fake tensor", re.IGNORECASE),
        "a tensor that is no parameter or buffer of the module takes part: register_buffer it, or "
        "create it inside forward()",
    ),
)
SCRIPT_ADVICE = "'{}' is TorchScript, which cannot be exported: build it from its Python class"
ELSE = (
    "make shapes and branches independent of the data, or convert the part of the model that does"
)


@dataclass(frozen=True)
class Place:
    """A module of the model, by dotted path and class, and the line of its code that ran last."""

    path: str
    kind: str
    file: str
    line: int

    @property
    def text(self) -> str:
        """The line's source, where it can be read."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        module = f"module {self.path} ({self.kind})" if self.path else f"the model ({self.kind})"
        code = f": `{self.text}`" if self.text else ""
        return f"{module}, {_short(self.file)}:{self.line}{code}"


def place_of(error: BaseException, model: nn.Module) -> Place | None:
    """The innermost module of `model` that was running when the error rose, None where none was.

    Read from the traceback: torch's export runs the model's own forward() on symbolic tensors.
    """
    for cause in _causes(error):
        found = _innermost(cause, model)
        if found is not None:
            return found
    return None


def open_shape(ref: str, graph: Graph) -> str | None:
    """The message for a graph with a tensor whose shape depends on values, None where all is fixed.

    torch exports such graphs for a fixed input too; the engines take none of them.
    """
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, Tensor) and not all(isinstance(side, int) for side in value.shape):
            place = _place_of_node(node)
            lines = [f"'{ref}' has shapes that depend on values" + (f": {place}" if place else "")]
            lines.append(f"{node.target} gives ({', '.join(map(str, value.shape))})")
            lines.append(f"Try: {SHAPE_ADVICE}")
            return "\n  ".join(lines)
    return None


def _place_of_node(node: Node) -> Place | None:
    """Where the model's code made a node: torch.export notes modules and lines."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    frames = re.findall(r'File "(.+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, int(line)) for file, line in frames if not file.startswith(TORCH)]
    if not stack or not own:
        return None
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return Place(path.removeprefix("model").removeprefix("."), name.split(".")[-1], *own[-1])


def cannot_export(ref: str, model: nn.Module, error: Exception) -> str:
    """The message for a model that torch.export does not take: where, why, and what to try."""
    place = place_of(error, model)
    said = " ".join(str(error).strip().split("\n\n")[0].split())[:LONGEST]
    lines = [f"torch.export cannot export '{ref}'" + (f": {place}" if place else "")]
    lines.append(f"torch says: {type(error).__name__}: {said}")
    lines.append(f"Try: {_advice(error, model, place.text if place else '')}")
    return "\n  ".join(lines)


def _advice(error: BaseException, model: nn.Module, code: str) -> str:
    said = " ".join(f"{type(cause).__name__} {cause}" for cause in _causes(error))
    if DATA.search(said):
        if READ_OUT.search(code):
            return READ_OUT_ADVICE
        return BRANCH_ADVICE if BRANCH.search(code) else SHAPE_ADVICE
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return SCRIPT_ADVICE.format(path or "the model")
    return next((advice for pattern, advice in ADVICE if pattern.search(said + code)), ELSE)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, the origin first."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return reversed(chain)


def _innermost(error: BaseException, model: nn.Module) -> Place | None:
    # Tracing puts proxies in the modules' places: other objects over the same __dict__.
    modules = {id(vars(m)): (path, type(m).__name__) for path, m in model.named_modules()}
    files = {_file_of(m) for m in model.modules()}
    module = line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        module = modules.get(id(_owner_dict(frame)), module)
        if module is not None and frame.f_code.co_filename in files:
            line = (frame.f_code.co_filename, number)
    if module is None or line is None:
        return None
    return Place(*module, *line)


def _owner_dict(frame: FrameType) -> object:
    """The __dict__ of the module whose method a frame runs, None where it runs none."""
    owner = frame.f_locals.get("self")
    return vars(owner) if isinstance(owner, nn.Module) else None


def _file_of(module: nn.Module) -> str | None:
    """The file of a module's forward(), None for torch's own modules."""
    forward = getattr_static(type(module), "forward", None)
    if not isinstance(forward, FunctionType) or type(module).__module__.split(".")[0] == "torch":
        return None
    return forward.__code__.co_filename


def _short(file: str) -> str:
    """The path from here, where the file lies below."""
    path = Path(file)
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else file
