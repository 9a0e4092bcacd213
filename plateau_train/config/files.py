"""Safe reads of files that others may have replaced, and folders that must be private."""

import errno
import functools
import logging
import os
import stat
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger("plateau_train")

LARGEST_TEXT = 2_000_000_000  # bytes of a file with settings or records


def open_file(path: Path, limit: int = LARGEST_TEXT) -> BinaryIO:
    """Open a regular file of at most ``limit`` bytes for reading; raises ``OSError`` for another.

    A pipe would wait forever for a writer, and a device may never end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {limit:,}")
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def read_file(path: Path, limit: int = LARGEST_TEXT) -> bytes:
    """Read a regular file; raises as ``open_file``."""
    with open_file(path, limit) as file:
        return file.read()


def is_private(folder: Path) -> bool:
    """Return whether only this user may write to a folder; make it if there is none.

    Logs a warning, once for each folder, if others may: what they put there must not be used.
    """
    try:
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        for each in reversed(missing):
            each.mkdir(exist_ok=True)
            each.chmod(0o700)  # whatever the umask is
        status = folder.stat()
    except OSError:
        return False
    if status.st_uid != os.getuid():
        _warn(folder, "belongs to another user")
    elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _warn(folder, "is writable by other users")
    else:
        return True
    return False


@functools.cache
def _warn(folder: Path, problem: str) -> None:
    what = "so nothing is read from it or kept in it: delete it, or give another --cache-dir"
    log.warning("%s %s, %s", folder, problem, what)
