"""Deploying onto real agents: what is there is used, what is not is brought."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from agent_tools import START_S, Agent, eventually, running_agent, upload_parts
from coordinator_tools import Part, TinyPlan, pictures, write_bundle, write_plan

from partition.cluster.deploy import Deployed, Step, Wanted, deploy, wanted_on
from partition.plan import read_plan
from runtime.client import Access, AgentClient
from runtime.digest import sha256_of, sha256_tree, size_of
from runtime.errors import RuntimeFault
from runtime.wire.descriptors import methods

DEVICE_SERVICE = "edgevit.v1.DeviceService"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> TinyPlan:
    """pi-0 serves sub0 and holds a replica of sub1."""
    return write_plan(
        tmp_path_factory.mktemp("deploy") / "plan", replicas=((), ("pi-0",), ())
    )  # not to be changed


def wanted_of(plan: TinyPlan, device: str = "pi-0", threads: int = 1) -> list[Wanted]:
    return wanted_on(read_plan(plan.path), device, threads)


def deployed(agent: Agent, wanted: list[Wanted]) -> tuple[Deployed, list[Step]]:
    steps: list[Step] = []
    return deploy(Access(agent.address), wanted, steps.append), steps


def deploy_when_there(address: str, wanted: list[Wanted]) -> Deployed:
    """As soon as the agent takes calls, before it is ready."""
    found: list[Deployed] = []

    def tried() -> bool:
        with suppress(RuntimeFault):
            found.append(deploy(Access(address), wanted, lambda step: None))
        return bool(found)

    eventually(tried, START_S)
    return found[0]


def kinds(steps: list[Step]) -> list[str]:
    """The steps but for the bytes on their way."""
    return [step.kind for step in steps if step.kind != "pushing"]


def answers(agent: Agent, plan: TinyPlan, done: Deployed) -> bool:
    """Whether every model that it names gives the numbers of its sub-model."""
    x = pictures(1)
    with AgentClient(agent.address) as client:
        for submodel, model in done.models.items():
            number = int(submodel.removeprefix("sub"))
            (spec,) = client.model_metadata(model).inputs
            given = x if spec.layout == "NHWC" or spec.shape[-1] == 3 else x.transpose(0, 3, 1, 2)
            answer = client.infer(model, np.ascontiguousarray(given)).output
            np.testing.assert_allclose(answer, plan.parts[number].features(x), rtol=1e-4, atol=1e-4)
    return bool(done.models)


def served(agent: Agent) -> dict[str, tuple[str, int]]:
    """Digest and threads of each ready model."""
    with AgentClient(agent.address) as client:
        return {m.name: (m.digest, m.threads) for m in client.describe().models if m.target}


def test_what_the_plan_asks_of_a_device(plan):
    first, second = wanted_of(plan, threads=3)
    assert (first.submodel, second.submodel) == ("sub0", "sub1")
    assert first.name == f"edvit-{plan.digest[:8]}-sub0"
    assert (first.target, first.threads) == ("onnx", 3)
    assert first.digest == sha256_tree(plan.bundle(0)) and first.path == plan.bundle(0)
    assert [w.submodel for w in wanted_of(plan, "pi-1")] == ["sub1"]
    assert wanted_of(plan, "pi-3") == []


def test_onto_an_empty_store_and_a_second_time(plan, tmp_path):
    wanted = wanted_of(plan, threads=2)
    names = [w.name for w in wanted]
    models = [f"{name}/onnx" for name in names]
    with running_agent(tmp_path / "store") as agent:
        done, steps = deployed(agent, wanted)
        assert (done.present, done.pushed, done.loaded) == ([], names, models)
        assert done.models == dict(zip(("sub0", "sub1"), models, strict=True)) and not done.failed
        assert kinds(steps) == ["pushed", "loading", "loaded"] * 2
        last = [step for step in steps if step.kind == "pushing"][-1]
        assert last.there == last.size > 0
        assert answers(agent, plan, done)
        assert served(agent) == {m: (w.digest, 2) for m, w in zip(models, wanted, strict=True)}

        engines = [engine.pid for engine in agent.engines()]
        again, steps = deployed(agent, wanted)
        assert (again.present, again.pushed, again.loaded) == (names, [], [])
        assert again.models == done.models and steps == []
        assert [engine.pid for engine in agent.engines()] == engines


def test_what_the_owner_has_under_a_name_of_his_own_is_used_as_it_is(plan, tmp_path):
    wanted = wanted_of(plan, threads=2)
    with running_agent(tmp_path / "store", load=[plan.bundle(0)]) as agent:
        with AgentClient(agent.address) as client:
            client.upload(plan.bundle(1), "mine")
        done, steps = deployed(agent, wanted)
        ours = wanted[1]
        assert done.present == ["sub0", ours.name] and done.pushed == []
        assert done.loaded == [ours.model] and kinds(steps) == ["loading", "loaded"]
        assert done.models == {"sub0": "sub0", "sub1": ours.model}
        assert all(step.there == step.size for step in steps), "no byte travelled"
        assert served(agent)["sub0"] == (wanted[0].digest, 1), "loaded by its owner, left alone"
        assert answers(agent, plan, done)
        with AgentClient(agent.address) as client:
            client.upload(plan.bundle(2), "mine")  # the owner has other plans for his name
        again, steps = deployed(agent, wanted)
        assert again.models == done.models and (again.loaded, steps) == ([], [])


def test_an_agent_that_was_just_started_again_is_waited_for(plan, tmp_path):
    """It loads what it had before by itself; nothing is loaded in its way."""
    wanted = wanted_of(plan)
    with running_agent(tmp_path / "store") as agent:
        first, _ = deployed(agent, wanted)
        address = agent.address
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(deploy_when_there, address, wanted)
        with running_agent(tmp_path / "store", listen=address) as agent:
            done = begun.result(120)
            assert (done.pushed, done.loaded) == ([], []) and done.models == first.models
            assert answers(agent, plan, done)


def test_other_threads_change_the_model_that_was_loaded_before(plan, tmp_path):
    wanted = wanted_of(plan)[:1]
    with running_agent(tmp_path / "store") as agent:
        deployed(agent, wanted)
        done, _ = deployed(agent, [replace(wanted[0], threads=2)])
        assert (done.pushed, done.loaded) == ([], [wanted[0].model])
        assert served(agent) == {wanted[0].model: (wanted[0].digest, 2)}


def test_an_upload_that_was_cut_goes_on_where_it_ended(plan, tmp_path):
    wanted = wanted_of(plan)[:1]
    size = sum(f.stat().st_size for f in plan.bundle(0).rglob("*") if f.is_file())
    with running_agent(tmp_path / "store") as agent:
        with AgentClient(agent.address) as client:
            parts = list(upload_parts(plan.bundle(0), wanted[0].name, 512))
            call = client._connection.channel.stream_unary(
                methods(DEVICE_SERVICE)["UploadBundle"].path,
                request_serializer=lambda m: m.SerializeToString(),
            )
            with pytest.raises(grpc.RpcError, match="not whole"):
                call(iter(parts[:-2]), timeout=30)
            there = sum(client.upload_status(wanted[0].digest).held.values())
        assert 0 < there < size
        done, steps = deployed(agent, wanted)
        assert done.pushed == [wanted[0].name] and not done.failed
        assert steps[0].kind == "pushing" and (steps[0].there, steps[0].size) == (there, size)
        assert answers(agent, plan, done)


def test_another_version_under_the_same_name_makes_way(plan, tmp_path):
    """A bundle's digest is outside the plan's: a plan that was made again has the same name."""
    wanted = wanted_of(plan)[:1]
    old = write_bundle(tmp_path / "old", Part.random(77, 4))
    before = replace(wanted[0], path=old, digest=sha256_tree(old))
    with running_agent(tmp_path / "store") as agent:
        assert deployed(agent, [before])[0].loaded == [wanted[0].model]
        done, _ = deployed(agent, wanted)
        assert (done.pushed, done.loaded) == ([wanted[0].name], [wanted[0].model])
        assert served(agent) == {wanted[0].model: (wanted[0].digest, 1)}
        assert answers(agent, plan, done)


def test_no_room_is_the_trouble_of_one_submodel_only(plan, tmp_path):
    first, second = wanted_of(plan)
    size = sum(f.stat().st_size for f in first.path.rglob("*") if f.is_file())
    with running_agent(tmp_path / "store", "--quota", f"{(size >> 10) + 1}K") as agent:
        done, steps = deployed(agent, [first, second])
        assert done.pushed == [first.name] and done.models == {"sub0": first.model}
        assert set(done.failed) == {"sub1"} and "quota" in done.failed["sub1"], done.failed
        assert kinds(steps) == ["pushed", "loading", "loaded"], "of sub0 alone"
        again, _ = deployed(agent, [second, first])
        assert again.models == {"sub0": first.model} and set(again.failed) == {"sub1"}


def test_what_the_device_cannot_run_does_not_travel(plan, tmp_path):
    first, second = wanted_of(plan)
    with running_agent(tmp_path / "store") as agent:
        done, steps = deployed(agent, [replace(first, target="coreml"), second])
        assert "no engine for coreml: " in done.failed["sub0"]
        assert done.models == {"sub1": second.model}
        assert not [step for step in steps if step.submodel == "sub0"]


def test_a_model_that_cannot_be_loaded_is_named_and_the_others_are_served(plan, tmp_path):
    """The bundle has the artefact's right bytes, which are no ONNX file."""
    first, second = wanted_of(plan)
    broken = spoilt(plan, tmp_path / "broken")
    with running_agent(tmp_path / "store") as agent:
        done, _ = deployed(agent, [replace(first, path=broken, digest=sha256_tree(broken)), second])
        assert set(done.failed) == {"sub0"} and agent.address in done.failed["sub0"]
        assert done.pushed == [first.name, second.name] and done.loaded == [second.model]


def test_a_bundle_that_changed_on_this_machine_is_not_served(plan, tmp_path):
    first = replace(wanted_of(plan)[0], path=write_bundle(tmp_path / "new", Part.random(5, 4)))
    with running_agent(tmp_path / "store") as agent:
        done, _ = deployed(agent, [first])
        assert "is not what the plan was made with" in done.failed["sub0"]
        assert done.models == {} and served(agent) == {}


def test_an_agent_that_dies_in_the_middle(plan, tmp_path):
    """What was done until then is told; the rest has the reason."""
    first, second = wanted_of(plan)
    with running_agent(tmp_path / "store") as agent:

        def tell(step: Step) -> None:
            if (step.submodel, step.kind) == ("sub1", "pushing") and agent.alive():
                agent.kill()

        done = deploy(Access(agent.address), [first, second, replace(second, submodel="x")], tell)
        assert done.models == {"sub0": first.model} and done.loaded == [first.model]
        assert set(done.failed) == {"sub1", "x"} and agent.address in done.failed["x"]


def test_nobody_there(plan):
    with pytest.raises(RuntimeFault, match=r"nothing listens at 127\.0\.0\.1:1"):
        deploy(Access("127.0.0.1:1"), wanted_of(plan), lambda step: None)


def test_two_at_once_bring_one_bundle(plan, tmp_path):
    wanted = wanted_of(plan)
    start = threading.Barrier(2)

    def one(agent: Agent) -> Deployed:
        start.wait(30)
        return deployed(agent, wanted)[0]

    with running_agent(tmp_path / "store") as agent, ThreadPoolExecutor(2) as pool:
        done = [each.result(120) for each in [pool.submit(one, agent) for _ in range(2)]]
        assert all(not each.failed for each in done)
        assert done[0].models == done[1].models == {w.submodel: w.model for w in wanted}
        assert set(served(agent)) == {w.model for w in wanted}
        assert len(agent.engines()) == 2
        assert answers(agent, plan, done[0])


def spoilt(plan: TinyPlan, folder: Path) -> Path:
    """A bundle whose manifest is right about an artefact that no engine takes."""
    write_bundle(folder, plan.parts[0])
    model = folder / "model.onnx"
    model.write_bytes(b"this is no network")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["artifacts"]["onnx"] |= {"sha256": sha256_of(model), "size_bytes": size_of(model)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
