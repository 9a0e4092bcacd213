"""Commits an epoch on the disk beside the training of the next one."""

import concurrent.futures
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Self


class _Pending(NamedTuple):
    commit: Future[float]  # its seconds
    report: Callable[[], object]


class Writer:
    """One thread that commits one epoch at a time, in order.

    ``submit`` waits until the previous epoch is committed, and an epoch is reported only after its
    commit. The end of the block waits for the last commit, and raises its error.
    """

    def __init__(self) -> None:
        self.seconds = 0.0  # that the last commit took
        self._thread = ThreadPoolExecutor(1, "writer")
        self._pending: _Pending | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def submit(self, commit: Callable[[], object], report: Callable[[], object]) -> None:
        """Start a commit; this thread calls ``report`` once it is done. Raises as ``wait``."""

        def timed() -> float:
            began = time.perf_counter()
            commit()
            return time.perf_counter() - began

        self.wait()
        self._pending = _Pending(self._thread.submit(timed), report)

    def poll(self) -> None:
        """Report the epoch that is being committed if it is done; raises as ``wait``."""
        if self._pending is not None and self._pending.commit.done():
            self.wait()

    def wait(self) -> None:
        """Report the epoch that is being committed once it is done; raises its error."""
        if self._pending is None:
            return
        concurrent.futures.wait([self._pending.commit])  # an interruption leaves it pending
        pending, self._pending = self._pending, None
        self.seconds = pending.commit.result()
        pending.report()
