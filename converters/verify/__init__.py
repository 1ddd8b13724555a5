"""Prove an artefact against torch on its real engine; where it fails, name the module."""

from converters.verify.artifact import verify_artifact
from converters.verify.locate import locate_divergence

__all__ = ["locate_divergence", "verify_artifact"]
