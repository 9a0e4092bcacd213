"""All writes of files. A file that is replaced is complete, old or new, at every moment.

Every change of the disk is one call of ``os``, so that the tests can stop, tear or refuse each.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel

from plateau_train.errors import StorageError

# A symbolic link in the place of one of our files is not followed: it may point anywhere.
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.tmp")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file in place of the one that is there; the rename commits it."""
    with as_storage_error(path, needed=len(content)), _temporary(path) as temporary:
        with _opened(temporary, _NEW) as descriptor:
            _write(descriptor, content)
            os.fsync(descriptor)  # or the rename could reach the disk before the content
        os.replace(temporary, path)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8."""
    write_bytes(path, text.encode())


def as_lines(records: Iterable[BaseModel]) -> bytes:
    """Return records as lines of JSON."""
    return "".join(f"{record.model_dump_json()}\n" for record in records).encode()


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file and sync it; on an error the file keeps its old length.

    A crash can leave a part of the content.
    """
    with as_storage_error(path, needed=len(content)), _opened(path, _APPEND) as descriptor:
        size = os.fstat(descriptor).st_size
        try:
            _write(descriptor, content)
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
            raise


def make_folder(path: Path) -> bool:
    """Make a folder and those above it; return whether it is new."""
    with as_storage_error(path):
        os.makedirs(path.parent, exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            if path.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            return False
        try:
            _sync_folder(path.parent)
            _sync_folder(path.parent.parent)  # the folder above may be new as well
        except OSError:
            os.rmdir(path)
            raise
        return True


def point_link(link: Path, target: str) -> None:
    """Make a symbolic link, or swap the one that is there, in one step."""
    with as_storage_error(link), _temporary(link) as temporary:
        os.symlink(target, temporary)
        os.replace(temporary, link)


def link_file(path: Path, link: Path) -> None:
    """Give a file a second name, or copy it if the file system refuses links."""
    with as_storage_error(link), _temporary(link) as temporary:
        if link.exists() and link.samefile(path):
            return  # POSIX: a rename between two names of one file does nothing
        try:
            os.link(path, temporary)
        except OSError:
            write_bytes(link, path.read_bytes())
        else:
            os.replace(temporary, link)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with as_storage_error(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            remove_file(path)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file in the same folder, which is removed on an error."""
    # Without the file's own name, which may be as long as names can be.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            os.unlink(temporary)
        raise


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)  # one call may write a part only
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Sync a folder's list of names, or a power failure could undo a rename.

    Does nothing for a folder that this process must not list.
    """
    try:
        with _opened(folder, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):  # some file systems sync files only
            raise


@contextlib.contextmanager
def as_storage_error(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Raise ``StorageError`` with the file and the reason if the system refuses a write."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, which is not followed"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = ""
            with contextlib.suppress(OSError):
                free = f", {shutil.disk_usage(path.parent).free:,} free"
            reason += f" ({needed:,} bytes needed{free})"
        hint = (
            "use a writable folder with free space (--runs-dir, or -o for a picture or an export)"
        )
        raise StorageError(f"{path} cannot be written: {reason}", hint=hint) from error
