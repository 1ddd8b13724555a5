"""plan.json: what its digest is over, and what is refused when it is read."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from plan_tools import tiny_record

from partition.errors import PartitionError
from partition.fusion_files import FusionHead, save_layers
from partition.learning.fusion import Fusion
from partition.making.chains import lost_sets
from partition.making.plan_writer import cluster_text
from partition.placing.cluster_file import read_cluster
from partition.plan import PLAN_NAME, PlanRecord, check_files, digest_of, read_plan, sealed
from runtime.digest import sha256_file, sha256_tree
from runtime.errors import CheckFailed

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, record: PlanRecord) -> Path:
    (folder / PLAN_NAME).write_text(record.model_dump_json())
    return folder


def test_a_plan_is_read_as_it_was_written(tmp_path):
    record = sealed(tiny_record())
    plan = read_plan(written(tmp_path, record))
    assert plan.record == record
    assert plan.digest == record.digest and len(plan.digest) == 64
    assert plan.bundle(record.submodels[1]) == tmp_path / "sub1"
    assert plan.fusion == tmp_path / "fusion" / "fusion.npz"
    assert record.submodel("sub1").classes == [2]
    with pytest.raises(PartitionError, match="no sub-model 'sub7', it has: sub0, sub1"):
        record.submodel("sub7")


def test_the_digest_is_over_what_is_served_and_not_over_when(tmp_path):
    record = tiny_record()
    for name, other in (
        ("created", "2027"), ("timings_s", {"fusion": 2.0}), ("machine", {"cores": 4}),
        ("digest", "x"),
    ):  # fmt: skip
        assert digest_of(record.model_copy(update={name: other})) == digest_of(record)
    for name, other in (("seed", 1), ("labels", ["a", "b", "d"]), ("answer", "logits")):
        assert digest_of(record.model_copy(update={name: other})) != digest_of(record)
    first, second = record.submodels

    def with_first(**changed: object) -> PlanRecord:
        return tiny_record(submodels=[first.model_copy(update=changed), second])

    assert digest_of(with_first(bundle_digest="7" * 64)) == digest_of(record)
    assert digest_of(with_first(artifacts={"onnx": "7" * 64})) != digest_of(record)
    assert digest_of(with_first(primary="right")) != digest_of(record)
    packages = [{"onnx": "3" * 64, "coreml": c * 64} for c in "ab"]
    assert len({digest_of(with_first(artifacts=a)) for a in packages}) == 1


def test_the_digest_is_the_same_on_every_machine():
    """Over canonical JSON: sorted keys, no spaces, floats as repr gives them."""
    content = tiny_record().model_dump(mode="json")
    for name in ("digest", "created", "timings_s", "machine"):
        del content[name]
    for part in content["submodels"]:
        del part["bundle_digest"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    assert digest_of(tiny_record()) == hashlib.sha256(text.encode()).hexdigest()


def spoiled(record: PlanRecord, **changed: object) -> str:
    data = json.loads(record.model_dump_json()) | changed
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "expected a JSON object"),
        (spoiled(sealed(tiny_record()), schema_version=2), "made by a newer edgevit"),
        (spoiled(sealed(tiny_record()), colour="red"), "field 'colour'"),
        (spoiled(sealed(tiny_record()), seed=7), "changed since it was made"),
        (
            sealed(
                tiny_record(fusion=tiny_record().fusion.model_copy(update={"file": "../../x"}))
            ).model_dump_json(),
            "names '../../x', which is not inside the plan",
        ),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(tmp_path, text, said):
    (tmp_path / PLAN_NAME).write_text(text)
    with pytest.raises(PartitionError) as found:
        read_plan(tmp_path)
    assert said in str(found.value) and PLAN_NAME in str(found.value)


def test_a_folder_that_is_no_plan_is_said(tmp_path):
    with pytest.raises(PartitionError, match=r"has no plan\.json"):
        read_plan(tmp_path)
    with pytest.raises(PartitionError, match="does not exist"):
        read_plan(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(PartitionError, match="is a file"):
        read_plan(tmp_path / "file")


def test_changed_files_are_found(tmp_path):
    record = tiny_record()
    (tmp_path / "fusion").mkdir()
    (tmp_path / "fusion" / "fusion.npz").write_bytes(b"weights")
    parts = []
    for part in record.submodels:
        (tmp_path / part.bundle).mkdir()
        (tmp_path / part.bundle / "model.onnx").write_bytes(part.name.encode())
        digest = sha256_tree(tmp_path / part.bundle)
        parts.append(part.model_copy(update={"bundle_digest": digest}))
    sha256 = sha256_file(tmp_path / "fusion" / "fusion.npz")
    fusion = record.fusion.model_copy(update={"sha256": sha256})
    plan = read_plan(written(tmp_path, sealed(tiny_record(submodels=parts, fusion=fusion))))
    check_files(plan)
    (tmp_path / "sub1" / "model.onnx").write_bytes(b"other")
    with pytest.raises(CheckFailed, match="sub1 is not what the plan was made with"):
        check_files(plan)


def test_reading_a_plan_needs_no_torch():
    code = (
        "import sys\n"
        "import partition.plan, partition.fusion_files\n"
        "import partition.placing.cluster_file, partition.placing.assign\n"
        "print(sorted({n.split('.')[0] for n in sys.modules} & {'torch', 'onnx', 'sklearn'}))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_fusion_in_numpy_is_that_in_torch(tmp_path):
    torch.manual_seed(0)
    fusion = Fusion([5, 3], 4, hidden=(7, 6)).eval()
    for value in fusion.parameters():
        torch.nn.init.normal_(value)
    linear = [layer for layer in fusion.layers if isinstance(layer, torch.nn.Linear)]
    save_layers(
        tmp_path / "fusion.npz",
        [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in linear],
    )
    head = FusionHead.load(tmp_path / "fusion.npz")
    assert head.widths == [8, 7, 6, 4]
    blocks = torch.randn(9, 8)
    blocks[4, 5:] = 0
    with torch.no_grad():
        np.testing.assert_allclose(head(blocks.numpy()), fusion(blocks).numpy(), rtol=1e-5)


def test_other_files_are_no_fusion_head(tmp_path):
    path = tmp_path / "fusion.npz"
    save_layers(path, [(np.ones((3, 4), "f"), np.ones(3, "f")), (np.ones((2, 5), "f"),) * 2])
    with pytest.raises(PartitionError, match="its layers do not fit"):
        FusionHead.load(path)
    np.savez(path, other=np.ones(3))
    with pytest.raises(PartitionError, match="no fusion head"):
        FusionHead.load(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(PartitionError, match="no fusion head"):
        FusionHead.load(path)


def test_the_cluster_file_goes_into_the_plan_with_whole_paths(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    plain = here / "cluster.yaml"
    plain.write_text("# mine\ndevices: [{name: a, compute: 1e9}]\n")
    assert cluster_text(read_cluster(plain), plain) == plain.read_text()
    plain.write_text(
        "devices: [{name: a, compute: 1e9, memory: 1MiB, address: 'pi:8470', token_file: t,"
        " tls: {ca: ca.pem}}]\n"
    )
    moved = there / "cluster.yaml"
    moved.write_text(cluster_text(read_cluster(plain), plain))
    (device,) = read_cluster(moved).devices
    assert device.token_file == here / "t" and device.memory == 2**20
    assert yaml.safe_load(moved.read_text())["devices"][0]["tls"]["ca"] == str(here / "ca.pem")


def test_which_submodels_are_lost_together():
    assert lost_sets([0, 1]) == [[0], [1]]
    assert lost_sets([0, 1, 0]) == [[0], [1], [2], [0, 2]]
    assert lost_sets([0, 0]) == [[0], [1]]
    assert lost_sets([0]) == []
