"""The one error type of the converters."""

from __future__ import annotations


class ConvertError(Exception):
    """Something a user can cause or mend; the command line prints it without a traceback.

    exit_code is 2 for bad usage or bad input and 1 for a check that failed.
    """

    exit_code = 2


class ProofFailed(ConvertError):  # noqa: N818  # what happened, as the user reads it
    """A step that must not change the function changed it."""

    exit_code = 1


class NothingConverted(ConvertError):  # noqa: N818
    """Every target failed; the message has the reasons and the ends of the logs."""

    exit_code = 1
