"""SIGINT, SIGTERM and SIGHUP end the program at any moment, within a second without a cluster.

A thread waits for them, so that they are handled while the main thread is deep in a compilation or
a download. It ends the process at once, without an exception that could be raised in the middle of
anything: the files on the disk are intact, because a rename commits each change. While a run is
trained, the main thread ends first: between chunks of steps it checks ``received``, removes its
progress bar and records why it stopped. The thread waits for it until the grace period is over or
a second signal arrives.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple, NoReturn

from plateau_train.errors import InterruptedRunError, PlateauTrainError

GRACE_SECONDS = 0.6
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(NamedTuple):
    """What is printed after a signal, or at the end of ``--max-time``."""

    progress: str  # how far the program got, such as "after epoch 8"; may be empty
    hint: str  # one line or more


def _describe_start() -> Stop:
    return Stop("", "start it again with the same command")


_describe = _describe_start
_received = 0
_grace_seconds = 0.0  # from the signal on, for the main thread; 0 outside of `graceful_shutdown`
_output_lock = threading.Lock()  # held by the thread that prints the error, which is printed once


def install() -> None:
    """Install the signal handlers of this process; called once, by the main thread."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # started by nohup
        signal.signal(number, lambda *_: None)  # the number of the signal is written to the pipe
    threading.Thread(target=_wait, args=(read_end,), daemon=True).start()


def set_description(describe: Callable[[], Stop]) -> None:
    """Set the function that says, when the program stops, how far it got."""
    global _describe
    _describe = describe


@contextlib.contextmanager
def graceful_shutdown(grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Let the block end by itself: it must check ``received`` regularly.

    ``grace_seconds`` is the time that it may take from a signal on.
    """
    global _grace_seconds
    _grace_seconds = grace_seconds
    try:
        yield
    finally:
        _grace_seconds = 0


def received() -> int:
    """Return the number of the signal that was received, or 0."""
    return _received


def stop(number: int) -> NoReturn:
    """Raise ``InterruptedRunError`` for a signal, which another process may have received."""
    where = "" if number == _received else " in another process"
    message, hint = describe_stop(f"{signal.Signals(number).name}{where}")
    raise InterruptedRunError(message, hint=hint, signal_number=number)


def lock_output() -> None:
    """Let only the caller print the error; if the thread prints it already, wait for the end."""
    _output_lock.acquire()


def exit_now(exit_code: int) -> NoReturn:
    """End the process at once, without the time that libraries take to shut down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def exit_with_error(problem: str, hint: str, exit_code: int) -> NoReturn:
    """Print an error and end the process at once; may be called from any thread."""
    _exit_with(f"error: {problem}", hint, exit_code)


def _exit_with(message: str, hints: str, exit_code: int) -> NoReturn:
    lines = (
        "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) + "\n"
        for line in (message, *(f"hint: {hint}" for hint in hints.split("\n")))
    )
    with contextlib.suppress(OSError):  # a full disk or a closed pipe must not keep it from ending
        if sys.stdout.isatty():  # the main thread can no longer remove its bar and show the cursor
            os.write(sys.stdout.fileno(), b"\r\x1b[2K\x1b[?25h")
        os.write(2, "".join(lines).encode())
    os._exit(exit_code)


def _wait(read_end: int) -> NoReturn:
    global _received
    number = os.read(read_end, 1)[0]
    _received = number
    if _grace_seconds:
        select.select([read_end], [], [], _grace_seconds)  # returns early on a second signal
    if _output_lock.acquire(blocking=False):
        _exit_with(*describe_stop(signal.Signals(number).name), 128 + number)
    threading.Event().wait(GRACE_SECONDS / 2)  # the main thread is printing
    os._exit(128 + number)


def describe_stop(reason: str) -> tuple[str, str]:
    """Return how far the program got and why it stopped, in one line, and the hints after it."""
    try:
        progress, hint = _describe()
    except PlateauTrainError:  # the folder of the run cannot be read any more
        progress, hint = _describe_start()
    return f"stopped {progress}".rstrip() + f" ({reason})", hint
