"""Standard output and error that nothing can break: what they cannot take is lost, and counted.

A training must not end because somebody closed the pipe that it prints to, or because the disk
under its log is full. All printing goes through these, whichever library does it; what libraries
of C++ print to standard output goes to the other, for it is not what was asked for.
"""

import errno
import io
import os
import sys

from plateau_train.errors import StorageError


class _Unbreakable(io.FileIO):
    """A file whose writes always succeed; ``failure`` is the first error that was passed over."""

    failure: OSError | None = None

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


_outputs: list[_Unbreakable] = []


def install() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``, and open whatever of 0, 1, 2 is closed.

    A closed one would be given to the next file that is opened, and prints would go into that.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
    asked_for = os.dup(1)
    os.dup2(2, 1)
    for descriptor, name in ((asked_for, "stdout"), (2, "stderr")):
        file = _Unbreakable(descriptor, "w", closefd=False)
        _outputs.append(file)
        stream = getattr(sys, name)
        text = io.TextIOWrapper(
            io.BufferedWriter(file),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",  # an encoding that knows no ellipsis gets an escape
            line_buffering=True,
        )
        setattr(sys, name, text)


def refuse_loss() -> None:
    """Raise ``StorageError`` if standard output was lost, unless its reader had gone."""
    sys.stdout.flush()
    failure = _outputs[0].failure
    if failure is not None and failure.errno != errno.EPIPE:
        raise StorageError(
            f"standard output could not be written: {failure.strerror}",
            hint="what was to be printed is lost; a run and its files are not: "
            "plateau-train runs lists them",
        )
