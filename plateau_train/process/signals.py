"""SIGINT and SIGTERM end the program within a second, at any moment.

A thread waits for them, so that they are heard while the main thread is deep in a compilation or a
download. It ends the process at once, without an exception that could come up in the middle of
anything: whatever is on the disk is whole, for it is committed by renames. Only while a run is
trained is the main thread asked first: it looks between chunks of steps, ends its live bar, and
writes down why it stopped. If it does not come to that in time, or a second signal comes, the
thread does not wait.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

from plateau_train.errors import InterruptedRunError

GRACE_SECONDS = 0.6
SIGNALS = (signal.SIGINT, signal.SIGTERM)

hint = "start it again with the same command"

_received = 0
_grace = 0.0  # seconds that the main thread has, from the signal on
_told = threading.Lock()  # taken by whoever tells the user, once


def install() -> None:
    """Take over the signals of this process; called once, by the main thread."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # the number of the signal goes into the pipe
    threading.Thread(target=_wait, args=(reading,), daemon=True).start()


@contextlib.contextmanager
def graceful_shutdown(grace: float = GRACE_SECONDS) -> Iterator[None]:
    """Let the block end in its own way, by looking at ``received`` again and again.

    ``grace`` is how many seconds it may take from a signal until it does.
    """
    global _grace
    _grace = grace
    try:
        yield
    finally:
        _grace = 0


def received() -> int:
    """Return the number of the signal that has come, or 0."""
    return _received


def stop(number: int) -> NoReturn:
    """Raise the ``InterruptedRunError`` of a signal, which another process may have got."""
    where = "" if number == _received else " in another process"
    raise InterruptedRunError(_message(number) + where, hint=hint, signal_number=number)


def lock_output() -> None:
    """Let the caller tell the user; it waits for the end where the thread tells already."""
    _told.acquire()


def exit_now(exit_code: int) -> NoReturn:
    """End the process at once, without the time that libraries take to shut down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def _wait(reading: int) -> NoReturn:
    global _received
    number = os.read(reading, 1)[0]
    _received = number
    if _grace:
        select.select([reading], [], [], _grace)  # ends early on a second signal
    if _told.acquire(blocking=False):
        # The main thread cannot take its live bar away any more, nor show the cursor again.
        clear = b"\r\x1b[2K\x1b[?25h" if sys.stdout.isatty() else b""
        os.write(2, clear + f"error: {_message(number)}\nhint: {hint}\n".encode())
    else:
        threading.Event().wait(GRACE_SECONDS / 2)  # the main thread is telling
    os._exit(128 + number)


def _message(number: int) -> str:
    return f"stopped by {signal.Signals(number).name}"
