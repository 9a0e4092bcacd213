"""The arrays of a run on disk: one plain ``.npz`` an epoch, for ``numpy.load``, whole or not there.

Not Orbax, which is for sharded states of terabytes on many hosts: this state is small and
replicated, and zip's CRC finds a flipped bit where Orbax loads it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from plateau_train.run import storage

BEST = "best.npz"
KEPT = 2  # the newest, and one before it should the newest be damaged


def save_checkpoint(
    folder: Path, epoch: int, arrays: Mapping[str, np.ndarray], *, is_best: bool
) -> None:
    """Write an epoch's number and arrays, link them if they are the best, and drop the old."""
    storage.make_folder(folder)
    path = folder / f"epoch-{epoch:06}.npz"
    with storage.replacing(path) as file:
        np.savez(file, allow_pickle=False, epoch=np.array(epoch), **dict(arrays))
    if is_best:
        storage.link_file(path, folder / BEST)
    for old in sorted(folder.glob("epoch-*.npz"))[:-KEPT]:
        storage.remove_file(old)
