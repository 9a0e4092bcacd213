"""Arrays in plain ``.npz`` files, as numpy.savez writes them: nothing is packed or pickled."""

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from typing import BinaryIO, NamedTuple

import numpy as np

MOST_HEADERS = 1000  # more than one process of usual networks needs
# The header of a member of a zip ends with the lengths of its name and of its extra fields.
_LENGTHS_OFFSET, _LENGTHS = 26, struct.Struct("<HH")


class _Location(NamedTuple):
    """Where the values of an array are in the bytes of a file."""

    shape: tuple[int, ...]
    dtype: np.dtype
    start: int


def read_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Return all arrays of a file as views of its bytes, read-only and not aligned.

    Checksums of the zip are not verified. Raises ``ValueError``, and what ``zipfile`` raises.
    """
    file = io.BytesIO(content)
    with zipfile.ZipFile(file) as archive:
        places = {entry.filename: _find(file, archive, entry) for entry in archive.infolist()}
    return {
        name.removesuffix(".npy"): np.frombuffer(
            content, place.dtype, math.prod(place.shape), place.start
        ).reshape(place.shape)
        for name, place in places.items()
    }


def read_array(file: BinaryIO, name: str) -> np.ndarray:
    """Return one array of a file; raises as ``read_arrays``, and ``KeyError``."""
    with zipfile.ZipFile(file) as archive:
        entry = archive.getinfo(f"{name}.npy")
        _find(file, archive, entry)
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _find(file: BinaryIO, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Location:
    """Find an array, before any memory is allocated for it.

    Raises ``ValueError`` for a member that is compressed or does not have the size it declares:
    otherwise a small file could take any amount of memory.
    """
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    with archive.open(entry) as member:
        np.lib.format.read_magic(member)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
        header_size = member.tell()
    size = header_size + math.prod(shape) * dtype.itemsize
    if dtype.hasobject or is_fortran or size != entry.file_size:
        raise ValueError(f"{entry.filename} does not have the size of its type and shape")
    file.seek(entry.header_offset + _LENGTHS_OFFSET)
    lengths = sum(_LENGTHS.unpack(file.read(_LENGTHS.size)))
    start = entry.header_offset + _LENGTHS_OFFSET + _LENGTHS.size + lengths + header_size
    return _Location(shape, dtype, start)


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray], comment: bytes) -> None:
    """Write a file with a comment at its end; for many small arrays faster than numpy.savez."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.comment = comment
        for name, array in arrays.items():
            content = _header(array.shape, array.dtype) + array.tobytes()
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content)


@lru_cache(MOST_HEADERS)
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    """Return what precedes the values of an array."""
    header, description = io.BytesIO(), np.lib.format.dtype_to_descr(dtype)
    fields = {"shape": shape, "fortran_order": False, "descr": description}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
