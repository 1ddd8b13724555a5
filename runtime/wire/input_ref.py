"""A request may name its input instead of carrying it: the device looks, and nothing is sent.

Such a ModelInfer has the string parameter `input_ref` and neither inputs nor raw contents.
"""

from __future__ import annotations

import re

import grpc

from runtime.wire.descriptors import Message
from runtime.wire.refused import Refused

INPUT_REF = "input_ref"
INPUT_AGE = "input_age_us"
ABOUT_INPUT = "input"
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", re.ASCII)  # one segment of a path


def input_ref(request: Message) -> str | None:
    """The name of a ModelInferRequest's input; None where it carries its tensors.

    Raises Refused, INVALID_ARGUMENT, for both at once and for what is no name.
    """
    if INPUT_REF not in request.parameters:
        return None
    if request.inputs or request.raw_input_contents:
        raise input_refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"parameter '{INPUT_REF}': it stands for the input, and the request has tensors too; "
            "send one of them",
        )
    given = request.parameters[INPUT_REF]
    name: str = given.string_param
    if given.WhichOneof("parameter_choice") != "string_param" or not NAME.fullmatch(name):
        raise input_refused(
            grpc.StatusCode.INVALID_ARGUMENT,
            f"parameter '{INPUT_REF}': expected a string of at most 128 letters, digits, '.', '_' "
            f"and '-' that does not start with '.', got {name[:140]!a}",
        )
    return name


def put_input_ref(request: Message, name: str) -> None:
    """Let a ModelInferRequest name its input."""
    request.parameters[INPUT_REF].string_param = name


def input_refused(code: grpc.StatusCode, message: str) -> Refused:
    """It is the named input that the device cannot read; its models are as before."""
    return Refused(code, message, ABOUT_INPUT)
