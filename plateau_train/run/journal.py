"""What a run writes down, in the order that lets it be lost at no moment.

The rename of a checkpoint commits an epoch. The lines of ``metrics.jsonl``, ``timings.jsonl`` and
``events.jsonl`` come after it; torn or missing ones are written again from the checkpoint.
"""

import contextlib
from collections.abc import Mapping, Sequence

import numpy as np

from plateau_train.errors import RunError
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint, Manifest
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import read_environment
from plateau_train.run.records import Drop, EpochRecord, Notice, Timing, read_notices


class Journal:
    """The files of one run, and what stands in them."""

    def __init__(self, run: RunDirectory, manifest: Manifest) -> None:
        """Bring the files of a run to where its manifest is, be it a new run or an old one."""
        self.run = run
        if run.summary.exists():  # it is there when a run is done, and this one goes on
            storage.remove_file(run.summary)
        storage.make_folder(run.checkpoints)
        for folder in (run.path, run.checkpoints):
            storage.remove_leftovers(folder)
        # What happened after the checkpoint is known from nowhere else; its drops happen again.
        known = [event for event in manifest.events if isinstance(event, Notice)]
        later = tuple(read_notices(run.events))[len(known) :]
        self.manifest = manifest.model_copy(update={"events": (*manifest.events, *later)})
        if not manifest.records or not _is_readable(run):  # else that of its beginning stays
            text = manifest.environment.model_dump_json(indent=2)
            storage.write_text(run.environment, text + "\n")
        self.write_whole()
        if self.manifest.records:
            checkpoint.mend_best(run.checkpoints, self.manifest)

    def write_whole(self) -> None:
        """Write the files of lines anew: what was only appended is on the disk at some time later.

        A run that is done is never mended, so it is done only after this.
        """
        storage.write_lines(self.run.metrics, self.manifest.records)
        storage.write_lines(self.run.timings, self.manifest.timings)
        storage.write_lines(self.run.events, self.manifest.events)

    def commit(
        self, records: Sequence[EpochRecord], timing: Timing, events: Sequence[Drop | Notice],
        arrays: Mapping[str, np.ndarray],
    ) -> None:  # fmt: skip
        """Keep an epoch of all replicas: once this returns, only the loss of the disk undoes it."""
        manifest = self.manifest.model_copy(
            update={
                "records": (*self.manifest.records, *records),
                "timings": (*self.manifest.timings, timing),
                "events": (*self.manifest.events, *events),
            }
        )
        checkpoint.save_checkpoint(self.run.checkpoints, Checkpoint(manifest, arrays))
        self.manifest = manifest
        storage.append_lines(self.run.metrics, records)
        storage.append_lines(self.run.timings, [timing])
        storage.append_lines(self.run.events, events)

    def note(self, notice: Notice) -> None:
        """Write down what else happened."""
        self.manifest = self.manifest.model_copy(update={"events": (*self.manifest.events, notice)})
        storage.append_lines(self.run.events, [notice])


def _is_readable(run: RunDirectory) -> bool:
    with contextlib.suppress(RunError):
        read_environment(run.environment)
        return True
    return False
