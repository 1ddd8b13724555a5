"""What gives logits for pictures: an artefact on its engine, or the torch module.

Pictures are (B, H, W, 3) float32 in [0, 1], prepared; logits are (B, classes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import RuntimeFault
from runtime.inputs import to_input
from runtime.sessions.base import Session

if TYPE_CHECKING:
    from converters.source import Source

Logits = NDArray[Any]


class Predictor(Protocol):
    """One thing to evaluate, loaded."""

    name: str
    precision: str | None
    engine: str
    engine_version: str

    def logits(self, pictures_BHWC: NDArray[np.float32]) -> Logits:
        """Logits (B, classes). Raises RuntimeFault."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class ArtifactPredictor:
    """An artefact, which takes one picture at a time."""

    def __init__(self, name: str, precision: str | None, session: Session) -> None:
        self.name = name
        self.precision = precision
        self.engine = session.engine
        self.engine_version = session.engine_version
        self._session = session

    def logits(self, pictures_BHWC: NDArray[np.float32]) -> Logits:
        """Logits (B, classes). Raises RuntimeFault where the engine does not run the picture."""
        session = self._session
        rows = [session.run(to_input(picture, session.input)) for picture in pictures_BHWC]
        return np.stack([row.reshape(-1) for row in rows])

    def close(self) -> None:
        """Free the engine's memory."""
        self._session.close()


class TorchPredictor:
    """The module that the artefacts were made from, normalisation applied here."""

    name = "torch"
    precision: str | None = "fp32"
    engine = "torch"

    def __init__(self, source: Source, threads: int) -> None:
        import torch

        self.engine_version = str(torch.__version__)
        torch.set_num_threads(threads)
        pre = source.preprocessing
        self._module = source.module
        self._ref = source.ref
        self._mean = torch.tensor(pre.mean).reshape(1, 3, 1, 1)
        self._std = torch.tensor(pre.std).reshape(1, 3, 1, 1)

    def logits(self, pictures_BHWC: NDArray[np.float32]) -> Logits:
        """Logits (B, classes), one batch. Raises RuntimeFault where the module does not take it."""
        import torch

        x_BCHW = torch.from_numpy(pictures_BHWC).permute(0, 3, 1, 2).contiguous()
        try:
            with torch.inference_mode():
                result: Logits = self._module((x_BCHW - self._mean) / self._std).numpy()
        except RuntimeError as error:
            raise RuntimeFault(
                f"'{self._ref}' does not take pictures of shape {tuple(x_BCHW.shape)}: "
                f"{str(error)[:300]}. --size sets their side, --batch 1 gives one at a time"
            ) from error
        return result

    def close(self) -> None:
        """Nothing is held that the module's owner does not hold."""
