"""What references look like: one grammar, for the converters, the evaluation and the trainer."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_tools import ROOT

from converters.refs.grammar import GIVEN, RANDOM, Kind, is_hub_ref, kind_of, needs_weights


@pytest.mark.parametrize(
    ("ref", "kind", "takes_classes"),
    [
        ("shvit_s1", Kind.ZOO, True),
        ("no_such_model", Kind.ZOO, True),
        ("timm:mobileone_s0", Kind.TIMM, True),
        ("timm:hf-hub:timm/shvit_s1.in1k", Kind.TIMM, True),
        ("package.module:factory", Kind.FACTORY, False),
        ("model.pt2", Kind.PROGRAM, False),
        ("some/where/MODEL.PT2", Kind.PROGRAM, False),
        (r"C:\models\net.pt2", Kind.PROGRAM, False),
        ("out/network.yaml", Kind.NETWORK, True),
        (r"C:\models\Network.YML", Kind.NETWORK, True),
    ],
)
def test_kinds(ref: str, kind: Kind, takes_classes: bool) -> None:
    assert kind_of(ref) is kind
    assert kind_of(ref).takes_classes is takes_classes


@pytest.mark.parametrize(
    ("ref", "weights", "needed"),
    [
        ("shvit_s1", RANDOM, False),
        ("shvit_s1", "best.safetensors", True),
        ("shvit_s1", "random.pth", True),
        ("shvit_s1", "hf:someone/net@0123/model.safetensors", True),
        ("package.module:factory", GIVEN, False),
        ("package.module:factory", "given.pth", True),
        ("NET.PT2", "NET.PT2", False),
        ("out/network.yaml", RANDOM, False),
        ("out/network.yaml", "model.safetensors", True),
    ],
)
def test_which_weights_are_in_a_file_of_their_own(ref: str, weights: str, needed: bool) -> None:
    assert needs_weights(ref, weights) is needed


def test_references_to_the_hub() -> None:
    assert is_hub_ref("hf:someone/net") and not is_hub_ref("someone/net.pth")


def test_it_needs_no_torch() -> None:
    code = "import converters.refs.grammar, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
