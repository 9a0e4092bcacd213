"""All writes of files. A file that is replaced is there whole, old or new, at every moment."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from plateau_train.errors import StorageError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file that takes the place of ``path`` when the block ends well."""
    temporary = _temporary(path)
    with _naming(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a whole text file, in UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def append_line(path: Path, line: str) -> None:
    """Add one line to a file, which need not exist yet."""
    with _naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def make_folder(path: Path) -> bool:
    """Make a folder and those above it; return whether it is new."""
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.mkdir()
        except FileExistsError:
            return False
        return True


def point_link(link: Path, target: str) -> None:
    """Make a symbolic link, or swap the one that is there, in one step."""
    temporary = _temporary(link)
    with _naming(link):
        try:
            temporary.symlink_to(target)
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)


def link_file(path: Path, link: Path) -> None:
    """Give a file a second name in the place of what is there; a copy where links are refused."""
    temporary = _temporary(link)
    with _naming(link):
        try:
            try:
                temporary.hardlink_to(path)
            except OSError:
                shutil.copyfile(path, temporary)
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)


def remove_file(path: Path) -> None:
    """Remove a file."""
    with _naming(path):
        path.unlink()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, or a rename could be lost with the power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's refusal of a write into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="give a folder that exists, has room, and that you may write to "
            "(--runs-dir, or -o for a plot)",
        ) from error
