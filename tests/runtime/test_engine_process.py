"""Engine processes and threads: real engines, processes really killed."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from engine_tools import (
    FOREVER,
    PATIENCE_S,
    Ends,
    counting,
    doubling,
    engine_of,
    gone,
    picky,
    run,
    until,
)

from runtime.sessions import open_session
from runtime.wire.refused import Refused

ROOT = Path(__file__).resolve().parents[2]
KINDS = ["process", "thread"]
CODE = grpc.StatusCode


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def number(n: float) -> np.ndarray:
    return np.full((1, 1), n, np.float32)


@pytest.mark.parametrize("target", ["tflite", "onnx", "executorch"])
def test_answers_are_those_of_a_session(tiny, target, kind):
    async def work():
        engine = engine_of(kind, tiny.paths[target])
        loaded = await engine.start()
        answers = [await engine.run([tiny.input_for(target, i)]) for i in range(4)]
        assert engine.alive
        await engine.close()
        assert not engine.alive
        return loaded, answers

    loaded, answers = run(work())
    session = open_session(tiny.paths[target])
    assert (loaded.engine, loaded.engine_version) == (session.engine, session.engine_version)
    assert (loaded.form.input, loaded.form.output) == (session.input, session.output)
    for i, ran in enumerate(answers):  # each is its own memory: the later did not change the first
        assert len(ran.outputs) == 1
        assert np.array_equal(ran.outputs[0], session.run(tiny.input_for(target, i)))
        assert ran.compute_us > 0 and ran.decode_us >= 0 and ran.encode_us >= 0


def test_inputs_in_any_memory(tiny, kind):
    """Read-only bytes, as the wire gives them, and views that are not contiguous."""
    x = tiny.input_for("onnx", 1)
    read_only = np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)
    view = np.asfortranarray(x)

    async def work():
        engine = engine_of(kind, tiny.paths["onnx"])
        await engine.start()
        answers = [(await engine.run([each])).outputs[0] for each in (x, read_only, view)]
        await engine.close()
        return answers

    plain, from_bytes, from_view = run(work())
    assert np.array_equal(plain, from_bytes) and np.array_equal(plain, from_view)


def test_requests_run_together_where_any_batch_goes(tmp_path, kind):
    parts = [np.arange(2 * n, dtype=np.float32).reshape(n, 2) + n for n in (1, 3, 2)]

    async def work():
        engine = engine_of(kind, doubling(tmp_path / "any.onnx"), max_batch=6)
        loaded = await engine.start()
        together, alone = await engine.run(parts), await engine.run([parts[1]])
        await engine.close()
        return loaded.form, together, alone

    form, together, alone = run(work())
    assert (form.most, form.joins, form.pads) == (6, True, False)
    assert all(np.array_equal(y, 2 * x) for x, y in zip(parts, together.outputs, strict=True))
    assert np.array_equal(alone.outputs[0], 2 * parts[1])


def test_a_fixed_batch_is_filled_up(tmp_path, kind):
    parts = [np.full((n, 2), n, np.float32) for n in (1, 2)]
    whole = np.arange(8, dtype=np.float32).reshape(4, 2)

    async def work():
        engine = engine_of(kind, doubling(tmp_path / "four.onnx", batch=4))
        loaded = await engine.start()
        full, some = await engine.run([whole]), await engine.run(parts)
        await engine.close()
        return loaded.form, full, some

    form, full, some = run(work())
    assert (form.most, form.joins, form.pads) == (4, True, True)
    assert [spec.shape for spec in form.served()] == [[-1, 2], [-1, 2]]
    assert np.array_equal(full.outputs[0], 2 * whole)
    assert [y.tolist() for y in some.outputs] == [[[2, 2]], [[4, 4], [4, 4]]]


def test_what_an_engine_cannot_run_is_an_answer(tmp_path, kind):
    async def work():
        engine = engine_of(kind, picky(tmp_path / "picky.onnx"))
        await engine.start()
        with pytest.raises(Refused, match="out of data bounds") as caught:
            await engine.run([np.array([[9]])])
        after = await engine.run([np.array([[3]])])
        await engine.close()
        return caught.value.code, after.outputs[0].tolist()

    assert run(work()) == (CODE.INTERNAL, [[30.0]])


def test_a_file_that_does_not_load_says_why(tiny, tmp_path, kind):
    path = tmp_path / "half.tflite"
    path.write_bytes(tiny.paths["tflite"].read_bytes()[:2000])

    async def work():
        engine = engine_of(kind, path)
        with pytest.raises(Refused, match=r"LiteRT cannot load half\.tflite") as caught:
            await engine.start()
        return caught.value.code, engine.pid

    code, pid = run(work())
    assert code == CODE.FAILED_PRECONDITION
    assert pid is None or gone(pid)


def test_killed_while_idle(tiny):
    ends = Ends()

    async def work():
        engine = engine_of("process", tiny.paths["tflite"], ends)
        await engine.start()
        os.kill(engine.pid, signal.SIGKILL)
        await until(lambda: ends.told)
        assert not engine.alive
        await engine.close()
        return engine.pid

    assert gone(run(work()))
    assert ends.told == ["the engine process of tiny.tflite ended with signal SIGKILL"]


def test_killed_in_the_middle_of_a_run(tmp_path):
    ends = Ends()

    async def work():
        engine = engine_of("process", counting(tmp_path / "count.onnx"), ends)
        await engine.start()
        answer = engine.run([number(FOREVER)])
        await until(lambda: psutil.Process(engine.pid).status() == psutil.STATUS_RUNNING)
        os.kill(engine.pid, signal.SIGSEGV)
        with pytest.raises(Refused, match=r"count\.onnx ended with signal SIGSEGV") as caught:
            await answer
        await until(lambda: ends.told)
        await engine.close()
        return caught.value.code

    assert run(work()) == CODE.UNAVAILABLE
    assert len(ends.told) == 1


def test_killed_while_it_loads(tiny):
    ends = Ends()

    async def work():
        engine = engine_of("process", tiny.paths["onnx"], ends)
        start = asyncio.ensure_future(engine.start())
        await until(lambda: engine.pid is not None)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(Refused, match="ended with signal SIGKILL") as caught:
            await start
        return caught.value.code

    assert run(work()) == CODE.UNAVAILABLE
    assert ends.told == []  # whoever started it knows


def test_a_load_that_takes_too_long_is_ended(tiny):
    async def work():
        engine = engine_of("process", tiny.paths["onnx"], load_timeout_s=0.01)
        with pytest.raises(Refused, match=r"did not load within 0\.01 s") as caught:
            await engine.start()
        return caught.value.code, engine.pid

    code, pid = run(work())
    assert code == CODE.DEADLINE_EXCEEDED and gone(pid)


def test_a_cancelled_load_leaves_no_process(tiny):
    async def work():
        engine = engine_of("process", tiny.paths["onnx"])
        start = asyncio.ensure_future(engine.start())
        await until(lambda: engine.pid is not None)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
        return engine.pid

    assert gone(run(work()))


@pytest.mark.parametrize("how", ["computes", "stopped"])
def test_a_hung_process_is_killed(tmp_path, how):
    ends = Ends()

    async def work():
        path = counting(tmp_path / "count.onnx")
        engine = engine_of("process", path, ends, run_timeout_s=0.3)
        await engine.start()
        if how == "stopped":
            os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(Refused, match=r"did not answer within 0\.3 s") as caught:
            await engine.run([number(FOREVER if how == "computes" else 1)])
        await engine.close()
        return caught.value.code, engine.pid

    code, pid = run(work())
    assert code == CODE.DEADLINE_EXCEEDED and gone(pid)
    assert len(ends.told) == 1 and "did not answer" in ends.told[0]


def test_a_hung_process_whose_socket_stays_open_is_answered(tmp_path, monkeypatch):
    """As that of a process does which waits for the disk: a kill does not end it."""
    pair, kept = socket.socketpair, []

    def keeping():
        ours, theirs = pair()
        kept.append(theirs.dup())
        return ours, theirs

    async def work():
        engine = engine_of("process", counting(tmp_path / "count.onnx"), run_timeout_s=0.3)
        monkeypatch.setattr(socket, "socketpair", keeping)
        await engine.start()
        with pytest.raises(Refused, match="did not answer within") as caught:
            await engine.run([number(FOREVER)])
        await engine.close()
        kept[0].close()
        return caught.value.code, engine.pid

    code, pid = run(work())
    assert code == CODE.DEADLINE_EXCEEDED and gone(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="counts in /proc")
@pytest.mark.parametrize("free", [0, 1, 2, 4, 6])
def test_without_descriptors_it_is_refused_and_leaves_none(tiny, free):
    agent, limits = psutil.Process(), resource.getrlimit(resource.RLIMIT_NOFILE)

    async def work():
        engine = engine_of("process", tiny.paths["onnx"])
        gc.collect()  # else mappings of engines before this one give descriptors free meanwhile
        taken, before = [], agent.num_fds()
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + 64, limits[1]))
        try:
            with suppress(OSError):
                while True:
                    taken.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(free):
                os.close(taken.pop())
            with pytest.raises(Refused, match="cannot start an engine process: Too many") as caught:
                await engine.start()
        finally:
            for each in taken:
                os.close(each)
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        return caught.value.code, engine.pid, agent.num_fds() - before

    assert run(work()) == (CODE.UNAVAILABLE, None, 0)


def test_a_hung_thread_is_left(tmp_path):
    ends = Ends()

    async def work():
        path = counting(tmp_path / "count.onnx")
        engine = engine_of("thread", path, ends, run_timeout_s=0.1)
        await engine.start()
        with pytest.raises(Refused, match="its thread is left") as caught:
            await engine.run([number(5e5)])
        assert not engine.alive
        await engine.close()
        return caught.value.code

    assert run(work()) == CODE.DEADLINE_EXCEEDED
    assert len(ends.told) == 1


def test_closing_answers_the_run_under_way(tmp_path, kind):
    async def work():
        engine = engine_of(kind, counting(tmp_path / "count.onnx"))
        await engine.start()
        answer = engine.run([number(3e5)])
        await asyncio.sleep(0.05)
        await engine.close()
        with pytest.raises(Refused, match="is being ended") as caught:
            await answer
        return caught.value.code, engine.pid

    code, pid = run(work())
    assert code == CODE.UNAVAILABLE
    assert pid is None or gone(pid)


def test_signals_of_the_process_group_are_the_agents(tiny):
    async def work():
        engine = engine_of("process", tiny.paths["tflite"])
        await engine.start()
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(engine.pid, each)
        ran = await engine.run([tiny.input_for("tflite")])
        await engine.close()
        return ran.outputs[0].shape

    assert run(work()) == (1, 7)


def test_the_same_code_from_any_working_directory(tiny, tmp_path, monkeypatch):
    (tmp_path / "runtime.py").write_text("raise SystemExit('the wrong runtime')")
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)

    async def work():
        engine = engine_of("process", tiny.paths["onnx"])
        loaded = await engine.start()
        await engine.close()
        return loaded.engine

    assert run(work()) == "onnxruntime"


AGENT = """
import asyncio, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import numpy as np
from engine_tools import FOREVER, engine_of

async def main():
    engine = engine_of("process", Path(sys.argv[3]))
    await engine.start()
    if sys.argv[4] == "busy":
        engine.run([np.full((1, 1), FOREVER, np.float32)])
    print(engine.pid, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("state", ["idle", "busy"])
def test_a_killed_agent_leaves_no_engine(tmp_path, state):
    """SIGKILL of the agent, which can clean nothing up."""
    path = counting(tmp_path / "count.onnx")
    command = [sys.executable, "-c", AGENT, str(ROOT), str(Path(__file__).parent), str(path), state]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        try:
            pid = int(agent.stdout.readline())
            engine = psutil.Process(pid)
            assert engine.is_running()
        finally:
            agent.kill()
    psutil.wait_procs([engine], timeout=PATIENCE_S)
    assert gone(pid)


IMPORTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from runtime.serving.engines.worker import open_warm
open_warm(Path(sys.argv[2]), 1, 16)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("target", ["tflite", "onnx"])
def test_a_worker_loads_what_its_session_needs(tiny, target):
    """Schemas and the server take memory that an engine process has no use for."""
    command = [sys.executable, "-c", IMPORTED, str(ROOT), str(tiny.paths[target])]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not {"pydantic", "grpc", "google", "psutil", "torch", "asyncio"} & set(json.loads(out))


MAPPED = """
import re, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import numpy as np
from runtime.serving.engines.worker import open_warm
path = Path(sys.argv[2])
session, _ = open_warm(path, 1, 16)
x = np.random.default_rng(0).random(session.input.shape, dtype=np.float32)
smaps = Path("/proc/self/smaps").read_text()
part = smaps.partition(str(path) + "\\n")[2]
print(re.search(r"Size: +(\\d+)", part)[1], re.search(r"Rss: +(\\d+)", part)[1])
print(session.run(x).tobytes().hex())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_mapped_file_is_let_go_and_still_runs(tiny):
    path = tiny.paths["tflite"].resolve()
    command = [sys.executable, "-c", MAPPED, str(ROOT), str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    size_kb, resident_kb = int(out[0]), int(out[1])
    assert size_kb > 0 and resident_kb < size_kb
    session = open_session(path)
    x = np.random.default_rng(0).random(session.input.shape, dtype=np.float32)
    assert session.run(x).tobytes().hex() == out[2]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_engines_come_and_go_without_a_trace(tiny):
    """Descriptors, mappings and children of the agent; killed and closed ones alike."""
    agent = psutil.Process()

    async def work():
        counts = []
        for n in range(6):
            engine = engine_of("process", tiny.paths["onnx"])
            await engine.start()
            await engine.run([tiny.input_for("onnx")])
            if n % 2:
                os.kill(engine.pid, signal.SIGKILL)
            await engine.close()
            counts.append((agent.num_fds(), len(agent.children())))
            del engine
        gc.collect()
        mapped = [m.path for m in agent.memory_maps() if "edgevit-engine" in m.path]
        return counts, mapped

    counts, mapped = run(work())
    assert len(set(counts[1:])) == 1 and mapped == []
