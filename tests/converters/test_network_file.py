"""network.yaml: written, read, built; and whatever else may stand in such a file."""

from __future__ import annotations

import pytest
import torch
import yaml
from helpers import randomise
from safetensors.torch import save_file

from converters.errors import ConvertError
from converters.refs.network_file import NetworkFile, read_network, write_network
from converters.source import load_source
from edgevit.models.efficientformer import EfficientFormerShape
from runtime.manifest import Preprocessing

SHAPE = EfficientFormerShape((16, 16, 32, 32), (1, 1, 2, 1), (0, 0, 1, 1))
PICTURES = Preprocessing(
    mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], height=64, width=64,
    crop_pct=0.9, interpolation="bilinear",
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "network.yaml"
    write_network(
        file,
        SHAPE,
        input_size=64,
        classes=5,
        preprocessing=PICTURES,
        made_from="efficientformer_l1",
    )
    return file


def test_what_was_written_is_built(path) -> None:
    source = load_source(str(path), settle=False)
    assert source.module.shape == SHAPE and not source.module.training
    assert (source.ref, source.family, source.num_classes) == (str(path), "efficientformer", 5)
    assert source.preprocessing == PICTURES
    assert (source.weights, source.trained) == ("random, seed 0", False)
    assert source.module(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert [file.name for file in path.parent.iterdir()] == ["network.yaml"]


def test_people_can_read_it(path) -> None:
    text = path.read_text()
    assert "family: efficientformer\n" in text and "widths: [16, 16, 32, 32]" in text
    assert "!!" not in text and "made_from: efficientformer_l1" in text


def test_random_weights_are_always_the_same(path) -> None:
    torch.manual_seed(1)
    first = load_source(str(path)).weights_sha256
    torch.manual_seed(2)
    assert load_source(str(path)).weights_sha256 == first


def test_weights_size_and_classes_are_given_as_to_a_zoo_model(path) -> None:
    trained = randomise(SHAPE.build(5, 64), seed=1)
    weights = path.with_name("model.safetensors")
    save_file(trained.state_dict(), weights)
    source = load_source(str(path), weights=weights)
    assert source.trained and source.weights == "model.safetensors"
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(source.module(x), trained(x))
    other = load_source(str(path), weights=weights, size=96, classes=3)
    assert other.module(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert not other.trained
    assert "resized from 4x4 to 6x6" in " ".join(other.notes)


def test_a_side_that_the_family_does_not_take(path) -> None:
    with pytest.raises(ConvertError, match=r"network.yaml: .* multiple of 32 pixels, got 40"):
        load_source(str(path), size=40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "has schema version 2, this edgevit reads 1"),
        ({"family": "resnet"}, "no shapes of family 'resnet'; expected one of:"),
        ({"shape": {"widths": [16, 16, 32, 32]}}, "a shape of efficientformer has the fields"),
        ({"shape": {"depth": 1}}, "a shape of efficientformer has the fields"),
        ({"shape": [1, 2]}, "is damaged: field 'shape'"),
        ({"shape.depths": [1, 1, 2, 0]}, "depths of an EfficientFormer are 4 whole numbers from 1"),
        ({"shape.depths": ["1", 1, 2, 1]}, "depths of an EfficientFormer"),
        ({"shape.attention_depths": [0, 0, 3, 1]}, "at most the depth"),
        ({"shape.widths": [16384] * 4}, "expected at most 1 G"),
        ({"input_size": 8192 * 32}, "expected at most 1 G"),
        ({"input_size": 0}, "field 'input_size'"),
        ({"input_size": True}, "field 'input_size'"),
        ({"classes": 0}, "field 'classes'"),
        ({"preprocessing.std": [0.5, 0.0, 0.5]}, "field 'preprocessing.std'"),
        ({"preprocessing.mean": [0.5]}, "field 'preprocessing.mean'"),
        ({"preprocessing.interpolation": "cubist"}, "field 'preprocessing.interpolation'"),
        ({"colour": "red"}, "field 'colour'"),
    ],
)
def test_what_stands_in_it_is_checked(path, change, said) -> None:
    data = yaml.safe_load(path.read_text())
    for name, value in change.items():
        outer, _, inner = name.rpartition(".")
        (data[outer] if outer else data)[inner] = value
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(ConvertError, match=said) as caught:
        load_source(str(path))
    assert str(path) in str(caught.value) and caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "describes no network"),
        (b"[1, 2]", "describes no network"),
        (b"devices: []", "describes no network"),
        (b"a: [1", "is not YAML"),
        (b"\xff\xfe\x00\x01", "cannot read"),
        (b"!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_files_of_another_kind(tmp_path, content, said) -> None:
    path = tmp_path / "network.yaml"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=said):
        load_source(str(path))


def test_a_short_file_that_would_become_a_long_one(path) -> None:
    """References of references: nine times nine times nine ... of one number."""
    lines = ["x:", "  a: &a [1]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"  {name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    network = path.read_text().replace("widths: [16, 16, 32, 32]", "widths: *i")
    path.write_text("\n".join([*lines, network]))
    with pytest.raises(ConvertError, match=r"field 'shape': .*more than 10000 values"):
        read_network(path)


def test_no_file(tmp_path) -> None:
    with pytest.raises(ConvertError, match=r"gone.yaml does not exist: expected a network.yaml"):
        load_source(str(tmp_path / "gone.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConvertError, match="is a folder"):
        load_source(str(tmp_path / "folder.yaml"))


def test_where_it_cannot_be_written(tmp_path) -> None:
    with pytest.raises(ConvertError, match="cannot write"):
        write_network(
            tmp_path / "gone" / "network.yaml", SHAPE, input_size=64, classes=5,
            preprocessing=PICTURES, made_from="it",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_writing_again_replaces_the_whole_file(path) -> None:
    write_network(
        path, SHAPE, input_size=32, classes=2, preprocessing=PICTURES, made_from="elsewhere"
    )
    told = read_network(path)
    assert isinstance(told, NetworkFile)
    assert (told.input_size, told.classes, told.made_from) == (32, 2, "elsewhere")
