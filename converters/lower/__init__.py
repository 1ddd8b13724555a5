"""One target per file; a target's vendor tools are imported only when it is asked for."""

from converters.lower.base import TARGETS, Job, Lowered, check_precision, lower_to, resolve_targets

__all__ = ["TARGETS", "Job", "Lowered", "check_precision", "lower_to", "resolve_targets"]
