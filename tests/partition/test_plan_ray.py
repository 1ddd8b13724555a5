"""Jobs on a real Ray that is started here: the same outputs as in local processes."""

from __future__ import annotations

import importlib.util
import io
import tarfile
from pathlib import Path

import pytest
import torch
from plan_tools import REF, write_model

from partition.cutting.submodel import Submodel
from partition.errors import PartitionError
from partition.making.chains import Ground
from partition.making.jobs import Folders, Job, LocalRunner
from partition.making.original import load_reference, save_original
from partition.making.ray_jobs import RayRunner, packed, unpack
from partition.making.steps import Step, carry_out, output_of
from partition.making.train_tasks import SUBMODEL
from partition.options import PartitionOptions
from partition.placing.cluster_file import ClusterFile
from partition.progress import Event, State, silent

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is an extra: pip install 'edgevit[ray]'"
)


def folders_in(place: Path) -> Folders:
    found = Folders(place / "steps", place / "logs", place / "tmp")
    for folder in (found.steps, found.logs, found.temporary):
        folder.mkdir(parents=True)
    return found


def test_archives_bring_a_folder_back_whole(tmp_path):
    (tmp_path / "a" / "deep").mkdir(parents=True)
    (tmp_path / "a" / "deep" / "file").write_bytes(b"\0bytes")
    (tmp_path / "b").mkdir()
    unpack(packed(tmp_path / "a"), tmp_path / "b", "again")
    assert (tmp_path / "b" / "again" / "deep" / "file").read_bytes() == b"\0bytes"
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["again"]


def test_an_archive_does_not_write_elsewhere(tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("../../outside")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    (tmp_path / "in").mkdir()
    with pytest.raises(tarfile.FilterError):
        unpack(archive.getvalue(), tmp_path / "in", "a")
    assert list((tmp_path / "in").iterdir()) == [] and not (tmp_path / "outside").exists()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Step, ...]]:
    """The original's folder, and importance, pruning and fine-tuning of one part."""
    folder = write_model(tmp_path_factory.mktemp("ray"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        source = load_reference(REF, str(folder / "small.safetensors"), None, 10)
    original = Step("original", "original", {"weights_sha256": source.weights_sha256})
    steps = folder / "kept"
    steps.mkdir()
    carry_out(original.order(), lambda *given: save_original(source, given[2]), steps, nobody)
    cluster = ClusterFile.model_validate({"devices": [{"name": "a", "compute": 1e9}]})
    ground = Ground(
        original, {"data": "digits", "data_digest": "0"}, PartitionOptions(epochs=1), cluster,
        folder, folder / "states",
    )  # fmt: skip
    return output_of(original, steps), ground.chain(0, [1, 4, 7], 2, list("0123456789"), 1)[:3]


def nobody(share: float, text: str) -> None:
    """Nobody listens."""


@needs_ray
@pytest.mark.slow
def test_a_local_ray_gives_what_local_processes_give(chain, tmp_path):
    original, steps = chain
    trained = {}
    for name in ("here", "ray"):
        folders = folders_in(tmp_path / name)
        unpack(packed(original), folders.steps, original.name)
        runner = LocalRunner(folders, 1, 1) if name == "here" else RayRunner(folders, "local", 1)
        events: list[Event] = []
        runner.run([Job("sub0", steps)], events.append)
        done = [e.step for e in events if e.state is State.DONE]
        assert done == ["sub0-importance", "sub0-prune", "sub0-train"]
        trained[name] = Submodel.load(output_of(steps[-1], folders.steps) / SUBMODEL).state_dict()
        events.clear()
        runner.run([Job("sub0", steps)], events.append)
        assert {e.state for e in events} == {State.REUSED}
    for tensor, value in trained["here"].items():
        assert torch.equal(trained["ray"][tensor], value)


@needs_ray
@pytest.mark.slow
def test_an_error_on_ray_comes_back_as_it_was(chain, tmp_path):
    original, steps = chain
    folders = folders_in(tmp_path)
    unpack(packed(original), folders.steps, original.name)
    bad = Step("bad", "importance", {**steps[0].settings, "data": "digit"}, steps[0].inputs)
    with pytest.raises(PartitionError, match="no such data: 'digit'") as found:
        RayRunner(folders, "local", 1).run([Job("bad", (bad,))], silent)
    assert found.value.exit_code == 2


@needs_ray
@pytest.mark.slow
def test_a_ray_that_is_not_there_is_said(chain, tmp_path):
    folders = folders_in(tmp_path)
    with pytest.raises(PartitionError, match=r"Ray at '127\.0\.0\.1:9' cannot be used"):
        RayRunner(folders, "127.0.0.1:9", 1).run([Job("sub0", chain[1])], silent)
