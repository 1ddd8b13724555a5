"""The one error type of the runtime: what was expected, what came, what to do."""

from __future__ import annotations


class RuntimeFault(Exception):  # noqa: N818
    """Something a user can cause or mend; the command line prints it without a traceback.

    exit_code is 2 for bad usage or bad input and 1 for a check that failed.
    """

    exit_code = 2


class CheckFailed(RuntimeFault):
    """A check ran and its answer is no: other numbers, other bytes."""

    exit_code = 1


class MissingExtra(RuntimeFault):
    """A package that this call needs is not installed; the message names the extra."""


def missing_extra(what: str, package: str, extra: str) -> MissingExtra:
    """The error for an absent optional package, with the line that installs it."""
    return MissingExtra(
        f"{what} needs the package '{package}', which is not installed. "
        f"Install it with: pip install 'edgevit[{extra}]'"
    )
