"""Standard output and error whose writes never fail: what cannot be written is lost.

A training must not end because somebody closed the pipe that it prints to, or because the disk
under its log is full. All printing goes through these streams, whichever library prints. What C++
libraries print to standard output goes to standard error: it is not part of the requested output.
"""

import errno
import io
import os
import select
import sys

from plateau_train.errors import PROGRAM, StorageError


class _Unbreakable(io.FileIO):
    """A file whose writes always succeed; ``failure`` is the first error that was ignored."""

    failure: OSError | None = None

    def write(self, data, /) -> int:
        try:
            # None means that a pipe is full and does not block.
            while (num_bytes := super().write(data)) is None:
                select.select([], [self], [])
            return num_bytes
        except OSError as error:
            self.failure = self.failure or error
            return memoryview(data).nbytes


_outputs: list[_Unbreakable] = []


def install() -> None:
    """Replace ``sys.stdout`` and ``sys.stderr``, and open those descriptors 0 to 2 that are closed.

    The number of a closed one would be given to the next file that is opened, and what is printed
    would be written into that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    stdout = os.dup(1)
    os.dup2(2, 1)
    for descriptor, name in ((stdout, "stdout"), (2, "stderr")):
        file = _Unbreakable(descriptor, "w", closefd=False)
        _outputs.append(file)
        stream = getattr(sys, name)
        text = io.TextIOWrapper(
            io.BufferedWriter(file),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",  # an encoding without an ellipsis gets an escape sequence
            line_buffering=True,
        )
        setattr(sys, name, text)


def require_written() -> None:
    """Raise ``StorageError`` if standard output was lost, unless its reader closed the pipe."""
    sys.stdout.flush()
    failure = _outputs[0].failure
    if failure is not None and failure.errno != errno.EPIPE:
        raise StorageError(
            f"standard output could not be written: {failure.strerror}",
            hint=f"only the output is lost, not the run: {PROGRAM} runs lists the stored runs",
        )
