"""Looks into a .pt2 file before torch does, and refuses what could run code of the file's maker.

What torch 2.13 does with such a file (torch/export/pt2_archive, torch/_export/serde):

- weights and constants are raw bytes, described in JSON. But a payload marked `use_pickle`, a
  `custom_obj_N` and an `opaque_obj_N` are unpickled without limits;
- the example inputs, and the weights of files from before torch 2.10, are pickles: first tried with
  weights_only, then, when that fails, without. A file that passes the first never meets the second;
- compiled libraries (data/aotinductor) are opened with dlopen;
- the graph is JSON, and becomes Python source that is executed: names of values go in as they are.
  Symbolic sizes go through sympy's eval. Tree specs may name any module to import. Guards are
  compiled too, unless the module is built without them (`module(check_guards=False)`);
- which functions a graph may call is checked by the verifier that the file itself names.

torch.export.load() falls back to the zip format of torch 2.7, all pickles, when anything raises;
`load_pt2` behind it does not, so that one is called here.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import torch

from converters.errors import ConvertError

GRAPH = "models/model.json"
PICKLES = (
    "data/sample_inputs/model.pt",
    "data/weights/model.pt",
    "data/constants/model.pt",
)
CONFIGS = (
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
)
HARMLESS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|extra/.+"
    r"|data/weights/weight_\d+|data/constants/tensor_\d+"
)
LIBRARY = re.compile(r"data/(aotinductor|executorch|mtia)/")
OBJECT = re.compile(r"data/constants/(custom|opaque)_obj_\d+")
PAYLOAD = re.compile(r"(weight|tensor)_\d+")

# Values, parameters, modules and ops: what may become source code.
NAME = re.compile(r"[\w.-]*")
# Of sympy's grammar: numbers, operators, functions (FloorDiv, Max) and symbols (s77), which may be
# written as Symbol('s77', positive=True).
SIZES = re.compile(
    r"(?:[A-Z][A-Za-z]*|[a-z]{1,4}\d+|'[a-z]{1,4}\d+'|[a-z]+=(?=True|False)|\d+(?:\.\d+)?"
    r"|[\s()+*/%,<>=!&|~-])*"
)
VERIFIERS = ("TRAINING", "ATEN", "")
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")
# Text that stays text: stack traces, versions, string arguments (they are quoted), guards (never
# compiled here).
TEXTS = ("metadata", "as_string", "as_strings", "torch_version", "guards_code")


def check_archive(path: Path) -> None:
    """Raise ConvertError where the file is no torch.export archive, or holds more than a graph.

    Reads through torch's own zip reader, so that both see the same records.
    """
    from torch.export.pt2_archive import PT2ArchiveReader  # with it comes torch's whole compiler

    try:
        with PT2ArchiveReader(str(path)) as archive:
            records = set(archive.get_file_names())
            for name in records:
                _check_record(path, name)
            if GRAPH not in records:
                raise ConvertError(f"{path} holds no model: expected the record {GRAPH}")
            for name in (n for n in CONFIGS if n in records):
                _check_config(path, json.loads(archive.read_string(name)))
            for name in (n for n in PICKLES if n in records):
                _check_pickle(path, name, archive.read_bytes(name))
            _check_graph(path, json.loads(archive.read_string(GRAPH)))
    except ConvertError:
        raise
    except Exception as error:  # torch's reader, JSON, or a shape of JSON that torch never writes
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ConvertError:
    """The error for a file that is damaged, or of another kind."""
    first_sentence = re.split(r"[.;]\s", " ".join(str(error).split()), maxsplit=1)[0]
    reason = first_sentence[:200] or type(error).__name__
    return ConvertError(
        f"{path} is no readable torch.export file ({reason}): it may be cut short, of another kind "
        "or of another torch; save it again with torch.export.save(program, 'model.pt2')"
    )


def _refuse(path: Path, what: str) -> ConvertError:
    return ConvertError(
        f"{path} is refused: {what}, and only a graph and its tensors are read. If you trust it, "
        "load it yourself and give the module through package.module:factory"
    )


def _check_record(path: Path, name: str) -> None:
    if LIBRARY.match(name):
        raise _refuse(path, f"it holds compiled code ({name})")
    if OBJECT.fullmatch(name):
        raise _refuse(path, f"it holds a pickled Python object ({name})")
    if name not in (GRAPH, *PICKLES, *CONFIGS) and not HARMLESS.fullmatch(name):
        raise _refuse(path, f"it holds the unknown record '{name}'")


def _check_config(path: Path, payloads: dict[str, Any]) -> None:
    for name, payload in payloads["config"].items():
        if payload["use_pickle"] or not PAYLOAD.fullmatch(payload["path_name"]):
            raise _refuse(path, f"the tensor '{name}' is a pickled Python object")


def _check_pickle(path: Path, name: str, data: bytes) -> None:
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _refuse(
            path, f"{name} wants to run code ({code[1] if code else type(error).__name__})"
        ) from error


def _check_graph(path: Path, program: dict[str, Any]) -> None:
    verifiers = program["verifiers"]
    if not verifiers or not all(v in VERIFIERS for v in verifiers):
        raise _refuse(path, f"its graph is of the unknown dialect {verifiers}")
    _check_texts(path, program, "")


def _check_texts(path: Path, value: Any, key: str) -> None:
    """Every name in the graph's JSON is one; `key` is what the value stands under."""
    if key in TEXTS:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            _check_texts(path, name, "")
            _check_texts(path, inner, name)
    elif isinstance(value, list):
        for inner in value:
            _check_texts(path, inner, key)
    elif isinstance(value, str):
        if key in ("in_spec", "out_spec"):
            _check_tree(path, json.loads(value)[1])
        elif key == "as_operator":  # a function as a value: no verifier looks at it
            raise _refuse(path, f"its graph passes the function {value[:80]!r} on")
        elif not (SIZES if key == "expr_str" else NAME).fullmatch(value):
            raise _refuse(path, f"its graph has code where a name belongs ({value[:80]!r})")


def _check_tree(path: Path, tree: dict[str, Any]) -> None:
    """A spec of inputs or outputs holds tuples, lists and dicts only; others import modules."""
    if tree["type"] not in CONTAINERS:
        raise _refuse(path, f"its inputs or outputs are a {str(tree['type'])[:80]}")
    context = json.loads(tree["context"]) if isinstance(tree["context"], str) else tree["context"]
    _check_texts(path, context, "")
    if isinstance(context, dict):
        raise _refuse(path, "its inputs or outputs hold an object")
    for child in tree["children_spec"]:
        _check_tree(path, child)
