"""Files for other programs: the weights, the network, and the metrics of a run.

Each format is a module of this folder that returns the content of its files; ``place`` writes them.
The modules import libraries that are slow or may be missing; the functions here import them when
called. Imports numerics, run, config and errors.
"""

import contextlib
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plateau_train.config.files import read_file
from plateau_train.errors import ConfigError, StorageError
from plateau_train.run import storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run

if TYPE_CHECKING:
    from plateau_train.numerics.model import Network, Variables


class Export(NamedTuple):
    """The files of an export by their names in its folder; one file alone has the name "".

    ``mark`` is what the files of an earlier export contain.
    """

    files: Mapping[str, bytes]
    mark: bytes


def export_weights(run: RunDirectory, checkpoint: Checkpoint, replica: int) -> Export:
    """Return the weights of a replica as safetensors, and a description of its network."""
    module = import_module("plateau_train.exports.safetensors")
    return Export(module.export(run, checkpoint, replica), module.MARK)


def export_network(
    network: "Network", variables: "Variables", image_shape: tuple[int, int, int]
) -> Export:
    """Return the network as a StableHLO program from images to logits, with its weights."""
    module = import_module("plateau_train.exports.stablehlo")
    return Export({"": module.export(network, variables, image_shape)}, module.MARK)


def export_events(run: Run) -> Export:
    """Return the metrics of a run as event files of TensorBoard.

    Raises ``ConfigError`` where tensorboardX is not installed.
    """
    try:
        module: Any = import_module("plateau_train.exports.tensorboard")
    except ModuleNotFoundError as error:
        if error.name != "tensorboardX":
            raise
        raise ConfigError(
            "event files of TensorBoard need tensorboardX, which is not installed",
            hint=f"{shlex.quote(sys.executable)} -m pip install tensorboardX",
        ) from error
    return Export(module.export(run), module.MARK)


def place(path: Path, output: Path | None, export: Export) -> Path:
    """Write an export to ``output``, or to ``path`` in a run if that is None; return its path.

    If the run cannot be written to, the export is written to the working directory, under the name
    of the run. Raises ``StorageError`` if that or ``output`` cannot be written, and ``ConfigError``
    for a file that is there and is not an earlier export.
    """
    if output is not None:
        write(output, export)
        return output
    try:
        storage.make_folder(path.parent)
        write(path, export)
    except StorageError:
        path = Path(f"{path.parent.parent.resolve().name}-{path.name}")
        write(path, export)
    return path


def write(path: Path, export: Export) -> None:
    """Write the files of an export, each as a whole; those of an earlier export are replaced."""
    for name in export.files:
        _refuse_other(path / name, export.mark, export.files[name])
    for name, content in export.files.items():
        file = path / name
        if name and not file.parent.is_dir():
            storage.make_folder(file.parent)
        storage.write_bytes(file, content)


def _refuse_other(path: Path, mark: bytes, new: bytes) -> None:
    """Raise ``ConfigError`` for a file that an export has not written."""
    with storage.as_storage_error(path), contextlib.suppress(FileNotFoundError):
        content = read_file(path)
        if mark not in content and content != new:
            raise ConfigError(
                f"{path} exists and is not an earlier export of this format",
                hint="choose another --output, or remove it",
            )
