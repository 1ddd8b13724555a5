"""The way of a model: load, export, fold, lower and verify each target, write the bundle."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from converters.bundle_writer import cannot_write, check_goal, staging
from converters.errors import ConvertError
from converters.lower.base import TARGETS, check_precision, resolve_targets
from converters.progress import Event, Progress, Stage, silent
from converters.workers import Worker
from runtime.digest import sha256_of, size_of
from runtime.manifest import (
    CONFIG_NAME,
    LABELS_NAME,
    MANIFEST_NAME,
    REFERENCE_NAME,
    Artifact,
    Failure,
    Manifest,
    ModelInfo,
    TensorSpec,
    Verification,
)

if TYPE_CHECKING:
    from torch import nn

    from converters.reparam import Reparameterized
    from converters.source import Source

PROOF_INPUTS = 3
LOG_FOLDER = "logs"


@dataclass(frozen=True)
class ConvertOptions:
    """What `edgevit convert` takes. size in pixels; jobs = targets converted side by side."""

    targets: str | list[str] = "all"
    weights: Path | None = None
    precision: str | None = None
    size: int | None = None
    classes: int | None = None
    labels: Path | None = None
    input_dtype: str = "float32"
    force: bool = False
    jobs: int | None = None


@dataclass
class _Outcome:
    """Answers of one worker, as they come."""

    seconds: dict[str, float] = field(default_factory=dict)
    lowered: dict[str, Any] = field(default_factory=dict)
    verified: dict[str, Any] = field(default_factory=dict)
    failure: Failure | None = None
    disk: str | None = None


def convert(
    model: str | nn.Module,
    out: Path | str,
    options: ConvertOptions | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Convert a model to a bundle folder `out`, each artefact verified against torch.

    model is a reference (`shvit_s1`, `timm:NAME`, `package.module:factory`) or a torch module that
    takes (1, 3, H, W) and gives logits (1, classes). Targets convert in worker processes of their
    own, side by side. A target that fails is in the manifest's `failures`, or its verification is
    'failed'; the others finish: read `failed_targets(manifest)`. Raises ConvertError (also where
    no target came out), ModelError, RuntimeFault; whatever is raised, `out` is as it was.
    """
    options = options or ConvertOptions()
    out = Path(out).absolute()
    targets = resolve_targets(options.targets)
    precisions = {t: check_precision(t, options.precision) for t in targets}
    _check_packages(targets)
    labels = _read_labels(options.labels)
    check_goal(out, options.force)
    begun = time.perf_counter()
    timings: dict[str, float] = {}
    timed = _timer(timings, progress)

    with ExitStack() as stack:
        folder = stack.enter_context(staging(out, options.force))
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
        pool = stack.enter_context(_Workers(targets, folder / LOG_FOLDER, options.jobs))
        source, folded, program = _prepare(model, options, labels, folder, scratch, timed)
        jobs = {t: _job(t, source, precisions[t], folder, program, pool.threads) for t in targets}
        outcomes = pool.run(jobs, progress)
        for outcome in outcomes.values():
            if outcome.disk:
                raise ConvertError(
                    f"cannot write the bundle {out}: {outcome.disk}. Nothing was left behind"
                )
        if all(o.failure for o in outcomes.values()):
            raise ConvertError(_nothing_came_out(outcomes, folder))
        with timed(Stage.BUNDLE):
            artifacts = {
                t: _artifact(t, precisions[t], folder, outcome)
                for t, outcome in outcomes.items()
                if outcome.failure is None
            }
            if labels:
                _write_text(folder / LABELS_NAME, "\n".join(labels) + "\n", out)
            _write_text(folder / CONFIG_NAME, _config(source, options, targets, precisions), out)
        timings["total"] = time.perf_counter() - begun
        manifest = Manifest(
            edgevit_version=_edgevit_version(),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            model=ModelInfo(
                ref=source.ref,
                family=source.family,
                num_classes=source.num_classes,
                weights=source.weights,
                weights_sha256=source.weights_sha256,
                trained=source.trained,
            ),
            preprocessing=source.preprocessing,
            classes=source.num_classes,
            labels=LABELS_NAME if labels else None,
            reference_sha256=sha256_of(folder / REFERENCE_NAME),
            reparam=folded.proof,
            artifacts=artifacts,
            failures={t: o.failure for t, o in outcomes.items() if o.failure},
            timings_s={k: round(v, 3) for k, v in timings.items()},
            machine=_machine(pool.jobs),
        )
        _write_text(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n", out)
    return manifest


def failed_targets(manifest: Manifest) -> dict[str, str]:
    """Target -> why, for every target that did not convert or did not verify."""
    failed = {t: f"{f.stage}: {f.error}" for t, f in manifest.failures.items()}
    for target, artifact in manifest.artifacts.items():
        if artifact.verification.status == "failed":
            where = artifact.verification.first_divergence
            failed[target] = f"verify: {artifact.verification.reason}" + (
                f"; first diverging module: {where}" if where else ""
            )
    return failed


def _prepare(
    model: str | nn.Module,
    options: ConvertOptions,
    labels: list[str] | None,
    folder: Path,
    scratch: Path,
    timed: Callable[..., Any],
) -> tuple[Source, Reparameterized, Path]:
    """Load, export, fold; writes reference.npz to `folder` and the folded program to `scratch`."""
    with timed(Stage.LOAD):
        import torch

        # The workers import beside us; two threads here would only wait for each other.
        torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
        from converters.export import export_folded, export_source
        from converters.pictures import as_uint8, proof_pictures
        from converters.reparam import reparameterize
        from converters.source import load_source

        source = load_source(
            model,
            weights=options.weights,
            size=options.size,
            classes=options.classes,
            input_dtype=options.input_dtype,
        )
        if labels and len(labels) != source.num_classes:
            raise ConvertError(
                f"{options.labels} has {len(labels)} labels, '{source.ref}' has "
                f"{source.num_classes} classes"
            )
    with timed(Stage.EXPORT):
        graph = export_source(source)
    with timed(Stage.REPARAM):
        pre = source.preprocessing
        pictures: Any = proof_pictures(pre.height, pre.width)
        if pre.input_dtype == "uint8":
            pictures = as_uint8(pictures)
        inputs_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
        folded = reparameterize(graph, inputs_BCHW[:PROOF_INPUTS])
        with torch.no_grad():
            rest = [graph(x[None]) for x in inputs_BCHW[PROOF_INPUTS:]]
        outputs = torch.cat([folded.outputs, *rest]).numpy()
        np.savez(folder / REFERENCE_NAME, inputs=pictures, outputs=outputs)
        program = scratch / "program.pt2"
        torch.export.save(export_folded(folded.module, inputs_BCHW[:1]), program)
    return source, folded, program


class _Workers:
    """The worker processes of one conversion; the dearest targets start first and at once."""

    def __init__(self, targets: list[str], logs: Path, jobs: int | None) -> None:
        self.order = sorted(targets, key=lambda t: -TARGETS[t].cost)
        self.logs = logs
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.jobs = max(1, min(jobs or (cores or 1), len(targets)))
        self.threads = max(1, (cores or 1) // self.jobs)
        self._running: list[Worker] = []
        self._lock = threading.Lock()

    def __enter__(self) -> _Workers:
        self._ahead = {t: self._start(t) for t in self.order[: self.jobs]}
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._running:
            worker.stop()

    def run(self, jobs: dict[str, dict[str, Any]], progress: Progress) -> dict[str, _Outcome]:
        """Convert every target; an interrupt ends the workers through __exit__."""
        executor = ThreadPoolExecutor(self.jobs, thread_name_prefix="edgevit-target")
        try:
            futures = {t: executor.submit(self._one, t, jobs[t], progress) for t in self.order}
            return {t: futures[t].result() for t in jobs}
        except BaseException:
            for worker in self._running:
                worker.stop()
            raise
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _start(self, target: str) -> Worker:
        worker = Worker.start(target, self.logs / f"{target}.log", self.threads)
        with self._lock:
            self._running.append(worker)
        return worker

    def _one(self, target: str, job: dict[str, Any], progress: Progress) -> _Outcome:
        worker = self._ahead.pop(target, None) or self._start(target)
        outcome = _Outcome()
        for answer in worker.run(job):
            _take(outcome, target, answer, progress)
        worker.stop()
        return outcome


def _take(outcome: _Outcome, target: str, answer: dict[str, Any], progress: Progress) -> None:
    """Book one answer of a worker and tell it on."""
    if "error" in answer:
        stage = answer["at"] if answer["at"] in set(Stage) else Stage.LOWER
        outcome.failure = Failure(
            stage=stage, error=answer["error"], log=f"{LOG_FOLDER}/{target}.log"
        )
        outcome.disk = answer.get("disk")
        progress(Event(Stage(stage), target, error=answer["error"]))
        return
    if "done" in answer:
        outcome.seconds["import"] = answer["import_s"]
        return
    stage = Stage(answer.pop("stage"))
    if answer.get("begin"):
        progress(Event(stage, target))
        return
    outcome.seconds[stage] = answer.pop("seconds")
    if stage is Stage.LOWER:
        outcome.lowered = answer
        progress(Event(stage, target, outcome.seconds[stage]))
        return
    outcome.verified = answer
    verdict = answer["verification"]
    progress(
        Event(
            stage,
            target,
            outcome.seconds[stage],
            error=verdict["reason"] if verdict["status"] == "failed" else None,
            detail=verdict["status"],
        )
    )


def _job(
    target: str, source: Source, precision: str, folder: Path, program: Path, threads: int
) -> dict[str, Any]:
    pre = source.preprocessing
    return {
        "program": str(program),
        "folder": str(folder),
        "file": TARGETS[target].file,
        "precision": precision,
        "height": pre.height,
        "width": pre.width,
        "input_dtype": pre.input_dtype,
        "threads": threads,
        "description": f"{source.ref}, {source.num_classes} classes, converted by edgevit",
        "metadata": {
            "edgevit": _edgevit_version(),
            "model": source.ref,
            "weights_sha256": source.weights_sha256,
            "normalization": f"inside; input RGB in {list(pre.input_range)}",
        },
    }


def _artifact(target: str, precision: str, folder: Path, outcome: _Outcome) -> Artifact:
    file = folder / TARGETS[target].file
    checked = outcome.verified
    return Artifact(
        target=target,
        file=file.name,
        sha256=sha256_of(file),
        size_bytes=size_of(file),
        precision=precision,
        input=TensorSpec.model_validate(checked["input"]),
        output=TensorSpec.model_validate(checked["output"]),
        engine=TARGETS[target].engine,
        tool_versions=outcome.lowered["tool_versions"],
        rewrites=outcome.lowered["rewrites"],
        delegation=checked["delegation"],
        verification=Verification.model_validate(checked["verification"]),
        timings_s={k: round(v, 3) for k, v in outcome.seconds.items()},
    )


def _config(
    source: Source, options: ConvertOptions, targets: list[str], precisions: dict[str, str]
) -> str:
    """config.yaml: what to say to get this bundle again."""
    return yaml.safe_dump(
        {
            "model": source.ref,
            "weights": str(options.weights) if options.weights else None,
            "weights_sha256": source.weights_sha256,
            "targets": targets,
            "precision": options.precision,
            "precisions": precisions,
            "size": [source.preprocessing.height, source.preprocessing.width],
            "classes": source.num_classes,
            "input": options.input_dtype,
            "edgevit": _edgevit_version(),
        },
        sort_keys=False,
    )


def _nothing_came_out(outcomes: dict[str, _Outcome], folder: Path) -> str:
    lines = ["no target converted:"]
    for target, outcome in outcomes.items():
        assert outcome.failure is not None
        lines.append(f"  {target} ({outcome.failure.stage}): {outcome.failure.error}")
        log = folder / (outcome.failure.log or "")
        if log.is_file():
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-6:]
            lines += [f"    | {line}" for line in tail]
    return "\n".join(lines)


def _read_labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise ConvertError(f"no such labels file: {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConvertError(
            f"cannot read the labels {path}: {error}; expected UTF-8 text, one label a line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _check_packages(targets: list[str]) -> None:
    """Every package that the targets need, before any work starts."""
    from importlib.util import find_spec

    from runtime.errors import missing_extra

    modules = {
        "torch": "torch",
        "coremltools": "coremltools",
        "litert-torch": "litert_torch",
        "ai-edge-litert": "ai_edge_litert",
        "ai-edge-quantizer": "ai_edge_quantizer",
        "executorch": "executorch",
        "onnx": "onnx",
        "onnxscript": "onnxscript",
        "onnxruntime": "onnxruntime",
    }
    for target in targets:
        for package in TARGETS[target].packages:
            if find_spec(modules[package]) is None:
                raise missing_extra(f"converting to {target}", package, "convert")


def _write_text(path: Path, text: str, out: Path) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise cannot_write(out, error) from error


def _timer(timings: dict[str, float], progress: Progress) -> Callable[[Stage], Any]:
    @contextmanager
    def timed(stage: Stage) -> Any:
        progress(Event(stage))
        started = time.perf_counter()
        yield
        timings[stage] = time.perf_counter() - started
        progress(Event(stage, seconds=timings[stage]))

    return timed


def _machine(jobs: int) -> dict[str, Any]:
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "targets_side_by_side": jobs,
    }


def _edgevit_version() -> str:
    try:
        return version("edgevit")
    except PackageNotFoundError:
        return "0+unknown"
