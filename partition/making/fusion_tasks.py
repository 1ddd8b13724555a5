"""The steps after all sub-models: the fusion head, how right all of it is, and what is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevit.data import Dataset, prepare
from partition.cutting.submodel import Submodel
from partition.fusion_files import FUSION_NPZ, RELU, FusionHead, FusionProof, save_layers
from partition.making.original import Original, data_for, load_original
from partition.making.steps import Tell
from partition.making.train_tasks import BUNDLE, SUBMODEL
from partition.plan import ACCURACY_NAME, Accuracy, LostBlocks, Served
from runtime.bundle import read_bundle
from runtime.errors import RuntimeFault
from runtime.inputs import to_input
from runtime.sessions.base import open_session

FUSION = "fusion.safetensors"
SERVED_PICTURES = 64


def train_head(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Train the fusion over the answers of all sub-models, and write it for torch and for numpy."""
    from edgevit.training import EpochRow, Step
    from partition.learning.distill import Views
    from partition.learning.train_fusion import FusionOptions, train_fusion

    original = load_original(inputs["original"])
    train, _ = data_for(settings, original)
    options = FusionOptions(
        views=Views(original.preprocess, seed=settings["seed"]),
        epochs=settings["epochs"],
        threads=settings["threads"],
    )

    def told(event: Step | EpochRow) -> None:
        if isinstance(event, Step):
            done = (event.epoch - 1 + event.step / event.steps) / event.epochs
            tell(0.5 + done / 2, f"epoch {event.epoch} of {event.epochs}, loss {event.loss:.3f}")

    tell(0.0, f"answers of all sub-models, {options.passes} times")
    fusion = train_fusion(
        _submodels(settings, inputs), original.model, train, options, progress=told
    )
    fusion.save(out / FUSION)
    state = {name: value.detach().numpy() for name, value in fusion.state_dict().items()}
    numbers = sorted({int(name.split(".")[1]) for name in state})
    save_layers(
        out / FUSION_NPZ,
        [(state[f"layers.{n}.weight"], state[f"layers.{n}.bias"]) for n in numbers],
    )


def measure_accuracy(
    settings: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, tell: Tell
) -> None:
    """Top-1 with all sub-models and without each set of `lost`; numpy's and the engines' answers.

    Writes accuracy.json and the proof of the .npz.
    """
    import torch

    from edgevit.training.threads import torch_threads
    from partition.learning.evaluate import fused_scores, scores
    from partition.learning.fusion import Fusion
    from partition.learning.train_fusion import held_out_answers

    original = load_original(inputs["original"])
    _, test = data_for(settings, original)
    submodels = _submodels(settings, inputs)
    fusion = Fusion.load(inputs["fusion"] / FUSION)
    head = FusionHead.load(inputs["fusion"] / FUSION_NPZ)
    tell(0.0, "answers of all models")
    with torch_threads(settings["threads"]), torch.no_grad():
        answers = held_out_answers(submodels, original.model, test, original.preprocess)
        fused_BY = fusion(answers.blocks).numpy()
        truth_B = answers.targets.argmax(1).numpy()
        without = [
            LostBlocks(
                lost=[f"sub{i}" for i in lost],
                blind=sorted(c for i in lost for c in submodels[i].classes),
                top1=fused_scores(fusion, answers, lost).top1_percent,
            )
            for lost in settings["lost"]
        ]
        own = _own_heads(submodels, answers.blocks, truth_B)
    tell(0.6, "answers of the artefacts")
    names = [f"sub{i}" for i in range(len(submodels))]
    accuracy = Accuracy(
        pictures=len(truth_B),
        full=scores(answers.full, answers.targets).top1_percent,
        fused=100 * float((fused_BY.argmax(1) == truth_B).mean()),
        without=without,
        submodels=dict(zip(names, own, strict=True)),
        served=_served(settings["targets"], inputs, original, test, head, fused_BY),
    )
    text = accuracy.model_dump_json(indent=1)
    (out / ACCURACY_NAME).write_text(text + "\n", encoding="utf-8")
    spread = float((fused_BY.max(0) - fused_BY.min(0)).max())
    error = float(np.abs(head(answers.blocks.numpy()) - fused_BY).max())
    FusionProof(head.widths, RELU, fusion.params, error / spread, len(truth_B)).write(out)


def _submodels(settings: Mapping[str, Any], inputs: Mapping[str, Path]) -> list[Submodel]:
    found: list[Submodel] = []
    while (role := f"sub{len(found)}") in inputs:
        submodel = Submodel.load(inputs[role] / SUBMODEL)
        submodel.answer = settings["answer"]
        found.append(submodel)
    return found


def _own_heads(
    submodels: Sequence[Submodel], blocks_BW: Any, truth_B: NDArray[np.int64]
) -> list[float]:
    """Top-1, percent, of each sub-model's own head on the pictures of its own classes."""
    found: list[float] = []
    blocks = blocks_BW.split([submodel.outputs for submodel in submodels], dim=1)
    for submodel, block in zip(submodels, blocks, strict=True):
        logits = submodel.head(block) if submodel.answer == "features" else block
        guessed_B = logits.argmax(1).numpy() - submodel.other
        mine = np.isin(truth_B, submodel.classes)
        at = {label: index for index, label in enumerate(submodel.classes)}
        right = [
            guess == at[label] for guess, label in zip(guessed_B[mine], truth_B[mine], strict=True)
        ]
        found.append(100 * float(np.mean(right)) if right else 0.0)
    return found


def _served(
    targets: Sequence[str],
    inputs: Mapping[str, Path],
    original: Original,
    test: Dataset,
    head: FusionHead,
    fused_BY: NDArray[np.float32],
) -> Served | None:
    """The artefacts on their engines and numpy's fusion, beside torch, on the first pictures.

    None where an engine does not run on this machine (Core ML off macOS).
    """
    pre = original.about.preprocessing
    every = max(1, len(test) // SERVED_PICTURES)
    chosen = list(range(0, len(test), every))[:SERVED_PICTURES]
    pictures = [
        prepare(test[i][0], pre.height, pre.width, pre.crop_pct, pre.interpolation) for i in chosen
    ]
    columns = []
    for index, target in enumerate(targets):
        bundle = read_bundle(inputs[f"bundle{index}"] / BUNDLE)
        try:
            session = open_session(bundle.artifact_path(target))
        except RuntimeFault:
            return None
        rows = [session.run(to_input(picture, session.input)).reshape(-1) for picture in pictures]
        session.close()
        columns.append(np.stack(rows))
    served_BY = head(np.concatenate(columns, axis=1).astype(np.float32))
    torch_BY = fused_BY[chosen]
    spread = float((fused_BY.max(0) - fused_BY.min(0)).max())
    same = served_BY.argmax(1) == torch_BY.argmax(1)
    return Served(
        pictures=len(chosen),
        same_top1=int(same.sum()),
        error_over_spread=float(np.abs(served_BY - torch_BY).max()) / spread,
    )
