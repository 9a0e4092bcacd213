"""Write a run for other programs: its weights, its network or its metrics."""

import logging
from pathlib import Path

from plateau_train.api.evaluation import choose_weights, find_places
from plateau_train.api.training import StartDevices
from plateau_train.config import Resolved, did_you_mean
from plateau_train.errors import ConfigError
from plateau_train.exports import Export, export_events, export_network, export_weights, place
from plateau_train.report.rows import to_csv
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.run.records import EpochRecord
from plateau_train.training import setup
from plateau_train.training.state import restore_replica

log = logging.getLogger("plateau_train")

# The name of each export in its folder of a run.
NAMES = {
    "safetensors": "safetensors",
    "stablehlo": "model.stablehlo",
    "csv": "metrics.csv",
    "tensorboard": "tensorboard",
}
FOLDER = "export"

ORIGIN = ("step", "epoch", "seed", "replica")
FIELDS = (
    *ORIGIN,
    *(name for name in EpochRecord.model_fields if name not in (*ORIGIN, "format", "observations")),
)
CSV_MARK = ",".join(ORIGIN).encode()


def export(
    path: Path,
    export_format: str,
    places: Resolved,
    start_devices: StartDevices,
    output: Path | None = None,
    *,
    which: str = "best",
    replica: int | None = None,
) -> Path:
    """Write a run in a format of ``NAMES``, to ``output`` or into the run; return the path.

    ``places`` says where the code of the network is now.
    ``which`` and ``replica`` choose the weights, as in ``evaluate``; the metrics are those of all
    epochs and replicas. Raises ``ConfigError`` for another format, for a choice that a format does
    not have, and for a file that is there and is not an earlier export.
    """
    if export_format not in [*NAMES]:  # in Python it may be anything
        raise ConfigError(
            f"--format must be one of {', '.join(NAMES)}, got "
            f"{export_format}{did_you_mean(export_format, NAMES)}",
            hint="safetensors has the weights, stablehlo the network, the others the metrics",
        )
    directory = RunDirectory.find(path)
    if export_format in ("csv", "tensorboard"):
        if which != "best" or replica is not None:
            raise ConfigError(
                f"{export_format} has every epoch of every seed, without --checkpoint or --replica",
                hint="leave them out, or use --format safetensors or stablehlo",
            )
        run = Run.open(path)
        content = _export_csv(run) if export_format == "csv" else export_events(run)
    else:
        checkpoint, _, number, title = choose_weights(directory, which, replica)
        log.info(f"{directory}, {title}")
        if export_format == "safetensors":
            content = export_weights(directory, checkpoint, number)
        else:
            start_devices(None)
            content = _export_network(directory, checkpoint, number, places)
    return place(directory.path / FOLDER / NAMES[export_format], output, content)


def _export_network(
    run: RunDirectory, checkpoint: Checkpoint, replica: int, places: Resolved
) -> Export:
    manifest = checkpoint.manifest
    model = find_places(run, manifest, places).model
    setup.permit_model(run, manifest.environment, model, places)
    network, variables = restore_replica(checkpoint, model, replica)
    return export_network(network, variables, manifest.environment.dataset.image_shape)


def _export_csv(run: Run) -> Export:
    """Return a row for each epoch of each replica; raises as ``Run.histories``."""
    records = [record for history in run.histories for record in history.records]
    records.sort(key=lambda record: (record.epoch, record.replica))
    text = to_csv([record.model_dump(include={*FIELDS}) for record in records], FIELDS)
    return Export({"": text.encode()}, CSV_MARK)
