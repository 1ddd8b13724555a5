"""Whether the data count and order their classes as the model was trained to.

Data whose classes come in another order give a low accuracy and no error, so this is looked at
first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevit.evaluation.errors import EvaluationError


def check_count(model_classes: int, data_classes: Sequence[str], who: str) -> None:
    """Raise EvaluationError where the data have another number of classes than the model."""
    if model_classes != len(data_classes):
        raise EvaluationError(
            f"{who} tells {model_classes} classes apart and the data have {len(data_classes)} "
            f"({_few(data_classes)}): give the data that it was trained for"
        )


def check_names(labels: Sequence[str], data_classes: Sequence[str], where: Path) -> str:
    """Compare class names; gives what can be said about the order, in words.

    labels are the model's, read from `where`. Raises EvaluationError where the counts differ, where
    a name stands at another place, and where only some names are the same. Names that are all
    different (words here, numbers there) prove nothing either way, and the answer says so.
    """
    if len(labels) != len(data_classes):
        raise EvaluationError(
            f"{where} has {len(labels)} labels and the data have {len(data_classes)} classes "
            f"({_few(data_classes)})"
        )
    theirs = [name.strip() for name in labels]
    ours = [name.strip() for name in data_classes]
    if theirs == ours:
        return f"class names are those of {where.name}"
    first = next(i for i, (one, other) in enumerate(zip(theirs, ours, strict=True)) if one != other)
    differs = f"class {first} is '{theirs[first]}' there and '{ours[first]}' in the data"
    if sorted(theirs) == sorted(ours):
        raise EvaluationError(
            f"{where} has the same classes as the data in another order: {differs}. Every accuracy "
            "would be of shuffled labels; bring the data into the model's order"
        )
    if set(theirs) & set(ours):
        raise EvaluationError(
            f"{where} and the data name different classes: {differs}. Give the data that the model "
            "was trained for, or correct the names"
        )
    return (
        f"class names could not be checked: {where.name} has other words than the data "
        f"('{theirs[0]}', '{ours[0]}'), so their order is taken on trust"
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
