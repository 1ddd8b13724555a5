"""A closed loop of callers: each sends its next request when the last one was answered."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from threading import Event, Lock
from time import perf_counter

from partition.cluster.asking import Caller, ClusterAnswer, NoAnswer
from runtime.wire.descriptors import Message

ERROR_PAUSE_S = 0.05
"""After a request without an answer a caller waits so long, as any sane one does."""
TELL_S = 0.5


@dataclass
class Load:
    """What became of the requests; times are milliseconds since the first one was sent."""

    answers: list[tuple[float, ClusterAnswer]] = field(default_factory=list)
    errors: list[tuple[float, NoAnswer]] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def sent(self) -> int:
        """How many requests were answered or failed."""
        return len(self.answers) + len(self.errors)


def drive(
    caller: Caller,
    request: Message,
    *,
    count: int,
    in_flight: int,
    limit_s: float,
    tell: Callable[[float], None],
) -> Load:
    """Send `count` requests, `in_flight` at a time; none is begun after limit_s.

    tell is told the fraction that is done. Whatever ends this early closes `caller`, and with it
    the calls under way. Raises RuntimeFault for an answer that cannot be read.
    """
    load, left, lock, stop = Load(), count, Lock(), Event()
    begun = perf_counter()

    def take() -> bool:
        nonlocal left
        with lock:
            left -= 1
            return left >= 0

    def work() -> None:
        while not stop.is_set() and perf_counter() - begun < limit_s and take():
            at_ms = (perf_counter() - begun) * 1e3
            try:
                load.answers.append((at_ms, caller.infer(request)))
            except NoAnswer as error:
                load.errors.append((at_ms, error))
                stop.wait(ERROR_PAUSE_S)

    with ThreadPoolExecutor(max_workers=in_flight) as pool:
        try:
            pending = {pool.submit(work) for _ in range(in_flight)}
            while pending:
                done, pending = wait(pending, TELL_S, FIRST_EXCEPTION)
                for each in done:
                    each.result()
                tell(load.sent / count)
        except BaseException:  # Ctrl-C: the threads end with their calls
            stop.set()
            caller.close()
            raise
    load.duration_s = perf_counter() - begun
    load.answers.sort(key=lambda entry: entry[0])
    return load
