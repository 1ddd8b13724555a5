"""The one error type of the partitioner: what was expected, what came, what to do."""

from __future__ import annotations


class PartitionError(Exception):
    """Something a user can cause or mend; the command line prints it without a traceback.

    exit_code is 2 for bad usage or bad input and 1 for a check that failed.
    """

    exit_code = 2


class InfeasibleError(PartitionError):
    """The budgets of the cluster cannot be met; the message names the one that binds."""

    exit_code = 1
