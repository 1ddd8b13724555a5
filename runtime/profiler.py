"""Measure artefacts so that their numbers can be compared.

Each artefact lives in a fresh process (runtime/measure.py). All load and warm up one after another;
then they take turns block by block, A B C A B C, one running while the others wait on their pipes,
so that a machine that slows down slows all of them. What a measurement disturbs comes after it:
peak memory is read when the blocks are done, then the delegation summary, then the per-op pass.
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runtime.cancel import Cancel, Progress
from runtime.child import Child, ChildFailedError
from runtime.cores import pick_cores
from runtime.digest import sha256_of, size_of
from runtime.environment import describe, edgevit_version
from runtime.errors import RuntimeFault
from runtime.manifest import Delegation
from runtime.measure import STEADY, WINDOWS
from runtime.profile_items import ProfileItem, distinct
from runtime.run_record import Environment, Measurement, Memory, NotMeasured, OpTime, RunRecord
from runtime.stats import compare, latency_stats

BLOCKS = 20
DISCARD = 1  # runs at the start of a block: another process had the caches
LOAD_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 60.0
SLACK = 20  # a block may take this many times what the warm-up predicts
PER_OP_RUNS = 20


@dataclass(frozen=True)
class _Settings:
    threads: int
    runs: int
    blocks: int
    min_time_s: float
    max_time_s: float
    cores: list[int] | None


@dataclass
class _Running:
    """An item whose process is up and warm."""

    item: ProfileItem
    child: Child
    sha256: str
    size: int
    loaded: dict[str, Any]
    warm: dict[str, Any]
    per_block: int = 1
    samples_ms: list[list[float]] = field(default_factory=list)
    peak: int = 0
    ops: list[OpTime] | None = None
    ops_note: str | None = None
    delegation: Delegation | None = None


def profile(
    items: list[ProfileItem],
    threads: int = 1,
    runs: int = 100,
    *,
    min_time_s: float = 1.0,
    max_time_s: float = 120.0,
    per_op: bool = False,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
) -> RunRecord:
    """Measure every item, interleaved, and compare each with the fastest.

    Each item gets at least `runs` samples and `min_time_s` seconds of them, unless all together
    would take longer than max_time_s seconds; then fewer, and a note says so. progress gets a
    message and the fraction done. An item that fails becomes NotMeasured. Raises RuntimeFault for
    no items or impossible numbers, Cancelled once cancel says so.
    """
    if not items:
        raise RuntimeFault("nothing to profile: give a bundle or an artefact file")
    if threads < 1 or runs < 1 or min_time_s < 0 or max_time_s <= 0:
        raise RuntimeFault(
            f"expected threads >= 1, runs >= 1 and times >= 0, got threads {threads}, runs {runs}, "
            f"min_time_s {min_time_s}, max_time_s {max_time_s}"
        )
    cancel = cancel or Cancel()
    tell = cancel.checked(progress)
    environment = describe()
    settings = _Settings(
        threads, runs, min(BLOCKS, runs), min_time_s, max_time_s, pick_cores(threads)
    )
    failed: list[NotMeasured] = []
    notes = _warnings(environment, threads)
    notes += dict.fromkeys(item.note for item in items if item.note)
    with ExitStack() as children:
        running: list[_Running] = []
        items = distinct(items)
        for number, item in enumerate(items):
            tell(f"{item.label}: load and warm up", 0.3 * number / len(items))
            child = Child(threads)
            children.callback(child.close)
            cancel.watch(child)
            try:
                running.append(_start(item, child, settings))
            except (ChildFailedError, RuntimeFault) as error:
                child.close()
                failed.append(_not_measured(item, error))
        notes += _plan(running, settings)
        running = _run_blocks(running, settings.blocks, failed, tell)
        running = _after(running, failed, per_op, tell)
    measurements = [_measurement(r, threads) for r in running]
    notes += [
        f"{m.label}: the warm-up did not become steady" for m in measurements if not m.warmup_steady
    ]
    tell("done", 1.0)
    return RunRecord(
        edgevit_version=edgevit_version(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment,
        threads=threads,
        runs=runs,
        method=_method(settings, running),
        measurements=measurements,
        not_measured=failed,
        comparisons=compare(measurements),
        notes=notes,
    )


def _warnings(environment: Environment, threads: int) -> list[str]:
    """What about the machine makes the numbers doubtful from the start."""
    cores, load = environment.cores_logical or 1, environment.load_average
    notes = []
    if threads > cores:
        notes.append(f"{threads} threads on {cores} logical cores: they wait for each other")
    if load is not None and load > cores / 2:
        notes.append(
            f"the load average was {load:.1f} at the start, on {cores} logical cores: "
            "other work may have disturbed these numbers"
        )
    return notes


def _start(item: ProfileItem, child: Child, settings: _Settings) -> _Running:
    if not item.path.exists():
        raise RuntimeFault(f"no such artefact: {item.path}")
    sha256, size = sha256_of(item.path), size_of(item.path)
    if item.artifact is not None and item.artifact.sha256 != sha256:
        raise RuntimeFault(
            f"{item.path}: expected sha256 {item.artifact.sha256[:12]}..., got {sha256[:12]}...: "
            "the file changed since it was made; convert again or fetch it anew"
        )
    question = {
        "do": "load",
        "path": str(item.path.resolve()),
        "threads": settings.threads,
        "cores": settings.cores,
        "reference": str(item.reference.resolve()) if item.reference else None,
    }
    loaded = child.ask(question, LOAD_TIMEOUT_S)
    warm = child.ask({"do": "warm_up"}, LOAD_TIMEOUT_S)
    return _Running(item, child, sha256, size, loaded, warm)


def _plan(running: list[_Running], settings: _Settings) -> list[str]:
    """Set how many samples each item takes a block; the notes where they are fewer than asked."""
    blocks = settings.blocks
    for r in running:
        wanted = max(settings.runs, settings.min_time_s * 1e3 / r.warm["median_ms"])
        r.per_block = math.ceil(wanted / blocks)
    total_s = sum(r.per_block * blocks * r.warm["median_ms"] for r in running) / 1e3
    if total_s <= settings.max_time_s:
        return []
    for r in running:
        r.per_block = max(1, math.floor(r.per_block * settings.max_time_s / total_s))
    return [
        f"{r.item.label}: {r.per_block * blocks} runs instead of {settings.runs}, to keep the "
        f"whole run near {settings.max_time_s:g} s"
        for r in running
        if r.per_block * blocks < settings.runs
    ]


def _run_blocks(
    running: list[_Running], blocks: int, failed: list[NotMeasured], tell: Progress
) -> list[_Running]:
    """Give the turns; items that fail drop out, the others go on."""
    for block in range(blocks):
        tell(f"block {block + 1} of {blocks}", 0.3 + 0.6 * block / blocks)
        for r in list(running):
            expected_s = (r.per_block + DISCARD) * r.warm["median_ms"] / 1e3
            question = {"do": "block", "runs": r.per_block, "discard": DISCARD}
            try:
                answer = r.child.ask(question, ANSWER_TIMEOUT_S + SLACK * expected_s)
                r.samples_ms.append(answer["ms"])
            except ChildFailedError as error:
                failed.append(_not_measured(r.item, error))
                running.remove(r)
    return running


def _after(
    running: list[_Running], failed: list[NotMeasured], per_op: bool, tell: Progress
) -> list[_Running]:
    """Peak memory, then per-op times, then delegation. Only a missing peak drops the item."""
    for number, r in enumerate(list(running)):
        tell(f"{r.item.label}: memory, ops, delegation", 0.9 + 0.1 * number / len(running))
        try:
            r.peak = int(r.child.ask({"do": "memory"}, ANSWER_TIMEOUT_S)["peak"])
        except ChildFailedError as error:
            failed.append(_not_measured(r.item, error))
            running.remove(r)
            continue
        try:
            if (
                found := r.child.ask({"do": "delegation"}, LOAD_TIMEOUT_S)["delegation"]
            ) is not None:
                r.delegation = Delegation.model_validate(found)
            if per_op:
                answer = r.child.ask({"do": "per_op", "runs": PER_OP_RUNS}, LOAD_TIMEOUT_S)
                r.ops_note = answer["note"]
                r.ops = [OpTime.model_validate(op) for op in answer["ops"] or []] or None
        except ChildFailedError as error:
            r.ops_note = f"not measured: {error}" if per_op else r.ops_note
        r.child.close()
    return running


def _measurement(r: _Running, threads: int) -> Measurement:
    artifact, loaded = r.item.artifact, r.loaded
    return Measurement(
        id=r.item.id,
        label=r.item.label,
        model=r.item.model,
        target=artifact.target if artifact else None,
        file=r.item.path.name,
        sha256=r.sha256,
        size_bytes=r.size,
        precision=artifact.precision if artifact else None,
        engine=loaded["engine"],
        engine_version=loaded["engine_version"],
        threads=threads,
        input_shape=loaded["input_shape"],
        input_dtype=loaded["input_dtype"],
        import_ms=loaded["import_ms"],
        load_ms=loaded["load_ms"],
        first_run_ms=loaded["first_run_ms"],
        warmup_runs=r.warm["runs"],
        warmup_steady=r.warm["steady"],
        samples_ms=r.samples_ms,
        latency=latency_stats(r.samples_ms),
        memory=Memory(
            before_load=loaded["before_load"], after_load=loaded["after_load"], peak=r.peak
        ),
        delegation=r.delegation,
        verification=artifact.verification if artifact else None,
        ops=r.ops,
        ops_note=r.ops_note,
    )


def _not_measured(item: ProfileItem, error: Exception) -> NotMeasured:
    return NotMeasured(
        id=item.id,
        label=item.label,
        file=item.path.name,
        target=item.artifact.target if item.artifact else None,
        reason=str(error),
    )


def _method(settings: _Settings, running: list[_Running]) -> dict[str, str | int | float | bool]:
    cores = settings.cores
    pinned = f"pinned to logical cores {cores}" if cores else "not pinned to cores"
    real = sum(r.item.reference is not None for r in running)
    return {
        "process": "a fresh process each; garbage collection off while timing",
        "threads": f"{settings.threads}: the engine's option and OMP_NUM_THREADS; {pinned}",
        "order": "blocks take turns (A B C A B C); one process runs, the others wait",
        "blocks": settings.blocks,
        "discarded_runs_per_block": DISCARD,
        "warm_up": f"until the medians of {WINDOWS} consecutive windows agree within {STEADY:.0%}",
        "load": "the file is in the page cache: it was hashed just before",
        "timed": "one call: input copied in, engine, output copied out",
        "input": f"first picture of reference.npz for {real} of {len(running)}, else random",
        "min_time_s": settings.min_time_s,
        "max_time_s": settings.max_time_s,
        "peak_memory": "VmHWM" if sys.platform == "linux" else "the system's peak resident set",
    }
