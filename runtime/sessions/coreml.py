"""Core ML, on macOS only. Elsewhere a package is converted and checked, not executed."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtime.errors import RuntimeFault, missing_extra
from runtime.sessions.base import Array, check_input, closed, layout_of, run_failed
from runtime.tensor_spec import TensorSpec

if TYPE_CHECKING:
    from runtime.manifest import Delegation
    from runtime.run_record import OpTime

MACOS_ONLY = "Core ML runs on macOS only"
NOT_HERE = f"{MACOS_ONLY}; the artefact is converted, not executed here"
# coremltools FeatureTypes.proto, ArrayFeatureType.ArrayDataType
DTYPES = {65568: "float32", 65600: "float64", 131104: "int32", 65552: "float16"}


def import_engine() -> Any:
    """The coremltools package. Raises RuntimeFault off macOS, MissingExtra."""
    if sys.platform != "darwin":
        raise RuntimeFault(NOT_HERE)
    try:
        import coremltools
    except ImportError as error:
        raise missing_extra("Running an .mlpackage", "coremltools", "convert") from error
    return coremltools


class CoreMLSession:
    """One .mlpackage with one input (a picture or an array) and one array output.

    Core ML spreads work over CPU, GPU and Neural Engine and picks its threads itself: `threads` is
    recorded, not honoured. A picture input is uint8 (1,H,W,3), NHWC.
    """

    engine = "coreml"

    def __init__(self, path: Path, threads: int) -> None:
        """Compile and load. Raises RuntimeFault off macOS or where the package does not load."""
        coremltools = import_engine()
        self.engine_version = (
            f"macOS {platform.mac_ver()[0]}, coremltools {coremltools.__version__}"
        )
        self._path = path
        self.threads = threads
        try:
            self._model: Any = coremltools.models.MLModel(str(path))
        except Exception as error:  # Core ML's errors arrive as bare exceptions
            raise RuntimeFault(
                f"Core ML cannot load {path.name}: {str(error)[:300]}. "
                "The package is damaged or needs a newer macOS; convert it again"
            ) from error
        description = self._model.get_spec().description
        self.input, self._picture = _only("input", description.input, path)
        self.output, _ = _only("output", description.output, path)

    def run(self, x: Array) -> Array:
        """Run once: x as `input` says, the result as `output` says, freshly allocated."""
        if self._model is None:
            raise closed(self._path)
        check_input(x, self.input)
        value: Any = x
        if self._picture:
            from PIL import Image

            value = Image.fromarray(x[0])
        try:
            answer = self._model.predict({self.input.name: value})
        except Exception as error:  # Core ML's errors arrive as bare exceptions
            raise run_failed("Core ML", self._path, error) from error
        return np.array(answer[self.output.name], dtype=self.output.dtype)

    def per_op(self, x: Array, runs: int) -> tuple[list[OpTime] | None, str | None]:
        """None: Core ML gives estimated costs of ops, not measured times."""
        if self._model is None:
            raise closed(self._path)
        check_input(x, self.input)
        return None, "Core ML estimates the cost of ops, it does not measure their times"

    def delegation(self) -> Delegation | None:
        """None: which unit an op runs on is decided at run time and not told."""
        if self._model is None:
            raise closed(self._path)
        return None

    def close(self) -> None:
        """Free the model."""
        self._model = None


def _only(kind: str, features: Any, path: Path) -> tuple[TensorSpec, bool]:
    """The spec of the only input or output, and whether it is a picture."""
    if len(features) != 1:
        raise RuntimeFault(f"{path.name}: expected one {kind}, the package has {len(features)}")
    feature = features[0]
    form = feature.type.WhichOneof("Type")
    if form == "imageType":
        picture = feature.type.imageType
        shape = [1, int(picture.height), int(picture.width), 3]
        return TensorSpec(name=feature.name, shape=shape, dtype="uint8", layout="NHWC"), True
    array = feature.type.multiArrayType
    if form != "multiArrayType" or array.dataType not in DTYPES:
        raise RuntimeFault(f"{path.name}: {kind} '{feature.name}' is neither picture nor array")
    shape = [int(n) for n in array.shape]
    dtype = DTYPES[array.dataType]
    return TensorSpec(name=feature.name, shape=shape, dtype=dtype, layout=layout_of(shape)), False
