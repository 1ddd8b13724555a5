"""What slimming answers with where it cannot go on."""

from __future__ import annotations

from converters.errors import ConvertError


class SlimError(ConvertError):
    """Something a user can cause or mend; exit code 2."""


class SlimFailed(SlimError):  # noqa: N818  # what happened, as the user reads it
    """The way was right and the goal was not reached; exit code 1."""

    exit_code = 1
