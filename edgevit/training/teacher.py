"""Distillation: a trained network says what it sees in the pictures that another one trains on."""

# Shapes: B batch, Y classes.

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgevit.training.evaluate import mean_of_heads
from edgevit.training.options import TrainingError


@dataclass(frozen=True)
class Teacher:
    """A module with the same classes, and how much of the loss it has.

    weight is the share of the divergence from it, 0 to 1; the labels have the rest. temperature
    divides both sides' logits (arXiv 1503.02531).
    """

    module: nn.Module
    weight: float = 0.5
    temperature: float = 2.0

    def check(self) -> None:
        """Raise TrainingError for a value that makes no sense."""
        if not 0 <= self.weight <= 1:
            raise TrainingError(f"a teacher's weight must be 0 to 1, got {self.weight:g}")
        if not 0 < self.temperature < float("inf"):
            raise TrainingError(
                f"a teacher's temperature must be above 0, got {self.temperature:g}"
            )

    def facts(self) -> dict[str, Any]:
        """What a continuation must share: the settings, and the digest of all its tensors."""
        digest = hashlib.sha256()
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
            content = value.detach().cpu().contiguous().reshape(-1)
            digest.update(content.view(torch.uint8).numpy())
        return {
            "teacher_weight": self.weight,
            "teacher_temperature": self.temperature,
            "teacher_sha256": digest.hexdigest(),
        }

    def mixed(self, label_loss: Tensor, outputs: Any, x: Tensor) -> Tensor:
        """The label loss (scalar, nats) and the divergence of the logits from the teacher's.

        outputs are the student's logits (B, Y), or several heads' of which each is taught; x are
        the pictures (B, 3, H, W) that gave them.
        """
        with torch.no_grad():
            taught_BY = mean_of_heads(self.module.eval()(x)).float()
        heads = outputs if isinstance(outputs, tuple | list) else (outputs,)
        apart = [divergence(logits.float(), taught_BY, self.temperature) for logits in heads]
        return (1 - self.weight) * label_loss + self.weight * torch.stack(apart).mean()


def divergence(logits_BY: Tensor, taught_BY: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) in nats at a temperature, times its square, the mean over B."""
    log_q_BY = F.log_softmax(logits_BY / temperature, dim=1)
    log_p_BY = F.log_softmax(taught_BY / temperature, dim=1)
    return F.kl_div(log_q_BY, log_p_BY, reduction="batchmean", log_target=True) * temperature**2
