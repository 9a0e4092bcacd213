"""SIGINT and SIGTERM end the program within a second, at any moment.

Where nothing is at stake the handler raises ``InterruptedRunError`` on the spot. While a run is
trained it sets a flag instead, which is looked at between chunks of steps. Either way a thread
waits beside: a second signal, or a main thread that stays in a compilation, a download or a write
for too long, ends the process at once. That is safe at any moment, for a run is committed by
renames; its resume command is printed all the same.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from plateau_train.errors import InterruptedRunError

GRACE_SECONDS = 0.6
SIGNALS = (signal.SIGINT, signal.SIGTERM)

hint = "start it again with the same command"

_received: int | None = None
_deferred = False
_told = threading.Lock()  # taken by whoever tells the user, once


def watch() -> None:
    """Take over the signals of this process; called once, by the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, _receive)
    threading.Thread(target=_leave_if_late, args=(reading,), daemon=True).start()


def check() -> None:
    """Raise ``InterruptedRunError`` if a signal has come."""
    if _received is not None:
        raise InterruptedRunError(_message(_received), hint=hint, signal_number=_received)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Leave it to ``check`` to raise, until the block ends."""
    global _deferred
    _deferred = True
    try:
        yield
    finally:
        _deferred = False


def claim() -> None:
    """Let the caller tell the user; it waits for the end where the thread tells already."""
    _told.acquire()


def leave(number: int) -> NoReturn:
    """End the process at once, without the seconds that libraries take to shut down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + number)


def _receive(number: int, _: object) -> None:
    global _received
    _received = number
    if not _deferred:
        check()


def _leave_if_late(reading: int) -> NoReturn:
    number = os.read(reading, 1)[0]
    select.select([reading], [], [], GRACE_SECONDS)  # ends early on a second signal
    if _told.acquire(blocking=False):
        # The main thread cannot take its live bar away any more, nor show the cursor again.
        clear = b"\r\x1b[2K\x1b[?25h" if sys.stdout.isatty() else b""
        os.write(2, clear + f"error: {_message(number)}\nhint: {hint}\n".encode())
    else:
        time.sleep(GRACE_SECONDS / 2)  # the main thread is telling
    os._exit(128 + number)


def _message(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"
