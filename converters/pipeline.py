"""The way of a model: load, export, fold, lower and verify each target, write the bundle."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from converters.bundle_writer import cannot_write, check_goal, staging, writing
from converters.chatter import chatter_to
from converters.errors import ConvertError, NothingConverted
from converters.lower.base import TARGETS, check_precision, resolve_targets
from converters.options import ConvertOptions
from converters.pool import Outcome, Pool
from converters.progress import Event, Progress, Stage, silent
from converters.records import artifact_of, config_of, manifest_of
from runtime.digest import sha256_of
from runtime.environment import edgevit_version
from runtime.labels import read_labels
from runtime.manifest import (
    CONFIG_NAME,
    LABELS_NAME,
    MANIFEST_NAME,
    REFERENCE_NAME,
    Manifest,
    ReparamProof,
)
from runtime.sessions.base import Array

__all__ = ["ConvertOptions", "check_packages", "convert", "failed_targets"]

if TYPE_CHECKING:
    from torch import nn

    from converters.source import Source

PROOF_INPUTS = 3
LOG_FOLDER = "logs"
MODEL_LOG = "model.log"
LOG_TAIL = 6
TEMPORARY = "temporary files (TMPDIR names their folder)"

Timed = Callable[[Stage], AbstractContextManager[None]]


def convert(
    model: str | nn.Module | Source,
    out: Path | str,
    options: ConvertOptions | None = None,
    progress: Progress = silent,
) -> Manifest:
    """Convert a model to a bundle folder `out`, each artefact verified against torch.

    model is a reference (`shvit_s1`, `timm:NAME`, `package.module:factory`, `path.pt2`,
    `network.yaml`) or a torch module that takes (1, 3, H, W) and gives logits (1, classes), bare or
    as a Source that says more about it. Targets convert in worker processes of their own, side by
    side. A target that fails is in the manifest's `failures`, or its verification is 'failed'; the
    others finish: read `failed_targets(manifest)`. Raises ConvertError (also where no target came
    out), ModelError, RuntimeFault; whatever is raised, `out` is as it was.
    """
    options = options or ConvertOptions()
    out = Path(out).absolute()
    targets = resolve_targets(options.targets)
    precisions = {t: check_precision(t, options.precision) for t in targets}
    check_packages(targets)
    labels = None if options.labels is None else read_labels(options.labels)
    check_goal(out, options.force)
    begun = time.perf_counter()
    timings: dict[str, float] = {}
    timed = _timer(timings, progress)
    to_bundle = partial(writing, f"the bundle {out}")
    to_scratch = partial(writing, TEMPORARY)

    with ExitStack() as stack:
        folder = stack.enter_context(staging(out, options.force))
        logs = folder / LOG_FOLDER
        with to_scratch():
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgevit-")))
        with to_bundle():
            pool = stack.enter_context(Pool(targets, logs, scratch, options.jobs))
        with chatter_to(logs / MODEL_LOG):
            made = _prepare(model, options, labels, timed)
        with to_bundle():
            np.savez(folder / REFERENCE_NAME, inputs=made.pictures, outputs=made.outputs)
        with to_scratch():
            program = scratch / "program.pt2"
            program.write_bytes(made.program)
        source = made.source
        jobs = {t: _job(t, source, precisions[t], folder, program, pool.threads) for t in targets}
        outcomes = pool.run(jobs, progress)
        _raise_if_fatal(outcomes, folder, out)
        with timed(Stage.BUNDLE), to_bundle():
            for target, outcome in outcomes.items():
                if outcome.failure is not None:
                    _remove(folder / TARGETS[target].file)  # perhaps half-written
            artifacts = {
                t: artifact_of(t, precisions[t], folder, outcome)
                for t, outcome in outcomes.items()
                if outcome.failure is None
            }
            if labels is not None:
                _write(folder / LABELS_NAME, "\n".join(labels))
            _write(folder / CONFIG_NAME, config_of(source, options, precisions))
        timings["total"] = time.perf_counter() - begun
        manifest = manifest_of(
            source, made.proof, outcomes, artifacts,
            labels=LABELS_NAME if labels is not None else None,
            reference_sha256=sha256_of(folder / REFERENCE_NAME),
            timings_s=timings,
            side_by_side=pool.jobs,
        )  # fmt: skip
        with to_bundle():
            _write(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2))
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


@dataclass(frozen=True)
class _Prepared:
    """The folded model: `program` is a .pt2 file, the arrays are those of reference.npz."""

    source: Source
    proof: ReparamProof
    pictures: Array
    outputs: Array
    program: bytes


def _prepare(
    model: str | nn.Module | Source,
    options: ConvertOptions,
    labels: list[str] | None,
    timed: Timed,
) -> _Prepared:
    """Load, export and fold."""
    with timed(Stage.LOAD):
        import torch

        from converters.export import Normalized, export_folded, export_source
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
        if labels is not None and len(labels) != source.num_classes:
            raise ConvertError(
                f"{options.labels} has {len(labels)} labels, '{source.ref}' has "
                f"{source.num_classes} classes"
            )
    with _sharing_cores():
        with timed(Stage.EXPORT):
            graph = export_source(source)
        with timed(Stage.REPARAM):
            pre = source.preprocessing
            pictures: Array = proof_pictures(pre.height, pre.width)
            if pre.input_dtype == "uint8":
                pictures = as_uint8(pictures)
            inputs_BCHW = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)))
            folded = reparameterize(graph, inputs_BCHW[:PROOF_INPUTS])
            # The model itself, not its export, is what every artefact answers to.
            eager = Normalized(source).eval()
            with torch.no_grad():
                outputs = torch.cat([eager(x[None].clone()) for x in inputs_BCHW]).numpy()
            program = io.BytesIO()
            torch.export.save(export_folded(folded.module, inputs_BCHW[:1]), program)
    return _Prepared(source, folded.proof, pictures, outputs, program.getvalue())


@contextmanager
def _sharing_cores() -> Iterator[None]:
    """Half of the cores for torch: the workers import beside us and need the others."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
            "edgevit": edgevit_version(),
            "model": source.ref,
            "weights_sha256": source.weights_sha256,
            "normalization": f"inside; input RGB in {list(pre.input_range)}",
        },
    }


def _raise_if_fatal(outcomes: dict[str, Outcome], folder: Path, out: Path) -> None:
    """Raise where a disk was full for one of the targets, or no target came out."""
    for outcome in outcomes.values():
        if outcome.disk is not None:
            number, place = outcome.disk
            raise cannot_write(
                f"the bundle {out}" if Path(place) == folder else TEMPORARY,
                number,
            )
    if not all(o.failure for o in outcomes.values()):
        return
    lines = ["no target converted:"]
    for target, outcome in outcomes.items():
        assert outcome.failure is not None
        lines.append(f"  {target} ({outcome.failure.stage}): {outcome.failure.error}")
        log = folder / (outcome.failure.log or "")
        if log.is_file():
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL:]
            lines += [f"    | {line}" for line in tail]
    raise NothingConverted("\n".join(lines))


def check_packages(targets: list[str]) -> None:
    """Raise MissingExtra unless every package that the targets need is there."""
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


def _write(path: Path, text: str) -> None:
    path.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def _remove(path: Path) -> None:
    """Take a file or a folder away, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _timer(
    timings: dict[str, float], progress: Progress
) -> Callable[[Stage], AbstractContextManager[None]]:
    @contextmanager
    def timed(stage: Stage) -> Iterator[None]:
        progress(Event(stage))
        started = time.perf_counter()
        yield
        timings[stage] = time.perf_counter() - started
        progress(Event(stage, seconds=timings[stage]))

    return timed
