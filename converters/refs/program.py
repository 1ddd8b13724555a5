"""`path.pt2`: a program that torch.export.save wrote, weights inside."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from converters.errors import ConvertError
from converters.refs.base import Source, class_count
from converters.refs.program_safety import check_archive, unreadable
from runtime.inputs import as_it_is

MODEL = "model"
AS_IT_IS = (
    "a .pt2 file tells no mean and std: the input goes in as it is, RGB in [0, 1]; export the "
    "model with its normalisation inside"
)
WANTED = "expected one picture, float32 of shape (1, 3, height, width), and logits (1, classes)"
# What ops with a mode of their own call it.
MODES = ("train", "training")


class Program(nn.Module):
    """An exported program as a module: pictures (1, 3, H, W) to logits. Its mode is fixed."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        # Without guards: they are Python source from the file, and the input is checked here.
        self.program = program.module(check_guards=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits: Tensor = self.program(x_BCHW)
        return logits

    def train(self, mode: bool = True) -> Program:
        """Nothing: an exported graph has the mode it was exported in."""
        return self


def from_program(
    ref: str, size: int | None, classes: int | None, weights: Path | str | None
) -> Source:
    """Load a .pt2 file; size (pixels) and classes may only say what the program has.

    Loading runs no code from the file (program_safety.py). Raises ConvertError.
    """
    path = Path(ref)
    if weights is not None:
        raise ConvertError(
            f"{path} has its weights inside, --weights {weights} would replace them: leave it out"
        )
    if classes is not None:
        raise ConvertError(f"{path} has its class count inside: leave --classes {classes} out")
    program = _load(path)
    _check_evaluation(path, program)
    picture = _check_call(path, program)
    height, width = _sides(path, picture, size)
    module = Program(program)
    count = class_count(ref, module, height, width)
    return Source(
        ref, module, as_it_is(height, width), count, None, path.name, "", True, (AS_IT_IS,)
    )


def _load(path: Path) -> ExportedProgram:
    # Not torch.export.load: it would try the pickles of an older format after an error.
    from torch.export.pt2_archive._package import load_pt2

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise ConvertError(f"{path} {what}: expected a file that torch.export.save wrote")
    check_archive(path)
    logger = logging.getLogger("torch.export.pt2_archive._package")
    level = logger.level
    try:
        logger.setLevel(logging.ERROR)  # what it warns of is checked already
        program = load_pt2(str(path)).exported_programs[MODEL]
    except Exception as error:  # schema versions, ops that are not registered here, cut bytes
        raise unreadable(path, error) from error
    finally:
        logger.setLevel(level)
    _check_ops(path, program)
    return program


def _check_ops(path: Path, program: ExportedProgram) -> None:
    """No op that opens a file by name (aten.from_file): those are the last way out of the graph."""
    for node in _nodes(program):
        schema = getattr(node.target, "_schema", None)
        if schema is not None and any(a.name == "filename" for a in schema.arguments):
            raise ConvertError(f"{path} is refused: its graph opens files ({node.target})")


def _check_evaluation(path: Path, program: ExportedProgram) -> None:
    """A program exported in training mode would answer by its batch, or by chance."""
    written = program.graph_signature.buffers_to_mutate
    trains = [str(node.target) for node in _nodes(program) if _in_training(node)]
    if written or trains:
        why = trains[0] if trains else f"it writes to {next(iter(written.values()))}"
        raise ConvertError(
            f"{path} was exported in training mode ({why}): call model.eval() and export again"
        )


def _in_training(node: torch.fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    for index, argument in enumerate(schema.arguments):
        if argument.name in MODES:
            value = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            return value is True
    return False


def _nodes(program: ExportedProgram) -> list[torch.fx.Node]:
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return [node for g in graphs for node in g.graph.nodes if node.op == "call_function"]


def _check_call(path: Path, program: ExportedProgram) -> Tensor:
    """One positional picture in, one tensor of logits out; gives the picture as it was traced."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature, call = program.graph_signature, program.call_spec
    inputs = [values.get(name, name) for name in signature.user_inputs]
    outputs = [values.get(name, name) for name in signature.user_outputs]
    picture = inputs[0] if len(inputs) == 1 else None
    logits = outputs[0] if len(outputs) == 1 else None
    found = f"takes {_described(inputs)} and gives {_described(outputs)}"
    plain = pytree.tree_structure(((0,), {}))
    if picture is not None and logits is not None and call.in_spec != plain:
        raise ConvertError(
            f"{path} takes its picture in a container or by keyword; {WANTED}: export it as "
            "torch.export.export(model, (picture,))"
        )
    if logits is not None and call.out_spec != pytree.tree_structure(0):
        raise ConvertError(f"{path} gives its logits in a container; {WANTED}")
    if not _is_picture(picture) or not _is_logits(logits):
        raise ConvertError(f"{path} {found}; {WANTED}")
    assert isinstance(picture, Tensor)
    batch = picture.shape[0]
    if isinstance(batch, int):
        fits = batch == 1
    else:
        known = program.range_constraints.get(batch.node.expr)
        fits = known is None or known.lower <= 2  # torch counts 0 and 1 as special, not as outside
    if not fits:
        raise ConvertError(f"{path} {found}: its batch cannot be 1; {WANTED}")
    return picture


def _is_picture(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.dim() == 4
        and isinstance(value.shape[1], int)
        and value.shape[1] == 3
    )


def _is_logits(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and value.dim() == 2
        and isinstance(value.shape[1], int)
    )


def _described(values: list[Any]) -> str:
    told = [
        f"{str(v.dtype).removeprefix('torch.')} ({', '.join(map(str, v.shape))})"
        if isinstance(v, Tensor)
        else repr(v)
        for v in values
    ]
    return " and ".join(told) or "nothing"


def _sides(path: Path, picture: Tensor, size: int | None) -> tuple[int, int]:
    """Height and width in pixels: the program's, or where it leaves them open --size's."""
    own: list[Any] = list(picture.shape[2:])
    fixed = [side for side in own if isinstance(side, int)]
    if size is not None:
        if any(side != size for side in fixed):
            raise ConvertError(
                f"{path} was exported for pictures of {own[0]} x {own[1]} and --size says {size}: "
                "leave it out, or export the model again for that size"
            )
        return size, size
    height, width = (side if isinstance(side, int) else side.node.hint for side in own)
    if height is None or width is None:
        raise ConvertError(f"{path} leaves its picture's size open: --size sets it")
    return int(height), int(width)
