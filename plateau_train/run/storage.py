"""All writes of files. A file that is replaced is there whole, old or new, at every moment.

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


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Put a whole file in the place of what is there; the rename is the moment it counts."""
    with _naming(path, needed=len(content)), _beside(path) as temporary:
        descriptor = os.open(temporary, _NEW, 0o666)
        try:
            _write(descriptor, content)
            os.fsync(descriptor)  # or the rename could reach the disk before what it names
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8."""
    write_bytes(path, text.encode())


def as_lines(records: Iterable[BaseModel]) -> bytes:
    """Write records as JSON, a line each."""
    return "".join(f"{record.model_dump_json()}\n" for record in records).encode()


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file and sync it; on an error the file keeps its old length. A crash can tear."""
    with _naming(path, needed=len(content)):
        descriptor = os.open(path, _APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                _write(descriptor, content)
                os.fsync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def make_folder(path: Path) -> bool:
    """Make a folder and those above it; return whether it is new."""
    with _naming(path):
        os.makedirs(path.parent, exist_ok=True)
        try:
            os.mkdir(path)
        except FileExistsError:
            if path.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
            return False
        try:
            # The folder above may be new as well.
            for folder in (path.parent, path.parent.parent):
                _sync_folder(folder)
        except OSError:
            os.rmdir(path)
            raise
        return True


def point_link(link: Path, target: str) -> None:
    """Make a symbolic link, or swap the one that is there, in one step."""
    with _naming(link), _beside(link) as temporary:
        os.symlink(target, temporary)
        os.replace(temporary, link)


def link_file(path: Path, link: Path) -> None:
    """Give a file a second name in the place of what is there; a copy where links are refused."""
    with _naming(link), _beside(link) as temporary:
        if link.exists() and link.samefile(path):
            return  # renaming one name of a file to another of the same does nothing, says POSIX
        try:
            os.link(path, temporary)
        except OSError:
            write_bytes(link, path.read_bytes())
        else:
            os.replace(temporary, link)


def remove_file(path: Path) -> None:
    """Remove a file, if it is there."""
    with _naming(path), contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of a process that was killed."""
    for path in folder.glob(".*.tmp"):
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            remove_file(path)


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Name a temporary file in the same folder, which is removed if the block fails."""
    # Without the file's own name, which may be as long as names can be.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            os.unlink(temporary)
        raise


def _write(descriptor: int, content: bytes | memoryview) -> None:
    """Write all of it: one call may take a part only."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, or a rename could be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that does this for files alone
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path, *, needed: int = 0) -> Iterator[None]:
    """Turn the system's refusal of a write into an error that names the file and the reason."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, which is not followed"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += f" ({needed:,} bytes needed{_free(path.parent)})"
        raise StorageError(
            f"{path} cannot be written: {reason}",
            hint="give a folder that exists, has room, and that you may write to "
            "(--runs-dir, or -o for a picture)",
        ) from error


def _free(folder: Path) -> str:
    try:
        return f", {shutil.disk_usage(folder).free:,} free"
    except OSError:
        return ""
