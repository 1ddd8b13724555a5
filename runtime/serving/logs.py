"""Logs of a server: one JSON object a line on stderr, made by the standard logging module.

A caller writes `log.info("bundle added", extra={"bundle": ...})`: the message is the event, what is
extra becomes fields. Nothing here or elsewhere logs the metadata of a call, where tokens travel.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")
# What every record has by itself; the rest came by `extra`.
OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """time (UTC, ISO 8601), level, event, logger, the fields, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One line without a line break in it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        fields = {k: v for k, v in record.__dict__.items() if k not in OWN}
        if record.exc_info and record.exc_info[0] is not None:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps({**fields, **line}, default=str)


def _not_a_departure(record: logging.LogRecord) -> bool:
    """False for what gRPC logs, with a traceback, when a caller is gone before its answer."""
    kind = record.exc_info[0] if record.exc_info else None
    return kind is None or kind.__name__ != "ExecuteBatchError"


def log_to(stream: TextIO, level: str) -> logging.Handler:
    """Send every record of at least `level` (one of LEVELS) to `stream`; give the handler."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.getLogger("grpc._cython.cygrpc").addFilter(_not_a_departure)
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(level.upper())
    return handler


def log_to_stderr(level: str) -> None:
    """What an agent does at its start."""
    log_to(sys.stderr, level)
