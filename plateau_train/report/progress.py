"""The progress of a training, printed: what the training loop calls."""

import datetime
import logging
from collections.abc import Sequence

from plateau_train.config import Settings
from plateau_train.report import text
from plateau_train.report.console import TrainingReport
from plateau_train.run.info import TrainingInfo
from plateau_train.run.journal import EpochLines
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, Ending

log = logging.getLogger("plateau_train")


class RunReport:
    """Print the training of one run."""

    prints_drops = True

    def __init__(self, *, is_quiet: bool) -> None:
        self._report = TrainingReport(is_quiet=is_quiet)
        self._last_epoch = -1

    def on_start(self, info: TrainingInfo) -> None:
        self._last_epoch = info.last_epoch
        self._report.header(text.describe_header(info))
        if warning := text.warn_of_no_drops(info.settings, info.steps_per_epoch):
            log.warning("%s", warning)

    def on_epoch_start(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        self._report.start_epoch(epoch, num_epochs, num_steps)

    def on_chunk(self, step: int, loss: float) -> None:
        self._report.step(step, loss)

    def on_epoch(self, lines: Sequence[EpochLines], settings: Settings) -> None:
        num_replicas = len(lines) * len(settings.run.seeds)
        for event in self._endings(lines) if num_replicas > 1 else ():
            log.warning("seed %d: %s", event.seed, event.message)
        is_plateau = settings.optimizer.schedule == "plateau"
        self._report.epoch(
            [record for written in lines for record in written.records],
            self._drops(lines) if self.prints_drops else (),
            num_replicas=num_replicas,
            num_epochs=settings.run.epochs,
            patience=settings.plateau.patience if is_plateau else None,
            seconds=sum(
                written.timing.train_seconds + written.timing.evaluate_seconds for written in lines
            ),
        )

    def on_finish(self, run: Run, seconds: float) -> None:
        duration = str(datetime.timedelta(seconds=round(seconds)))
        if self._last_epoch >= 0:
            duration += f" since epoch {self._last_epoch}"
        self._report.end(text.describe_end(run, duration), run.directory.path)

    def close(self) -> None:
        self._report.close()

    def _endings(self, lines: Sequence[EpochLines]) -> list[Ending]:
        events = [event for written in lines for event in written.events]
        return [event for event in events if isinstance(event, Ending) and not event.is_complete]

    def _drops(self, lines: Sequence[EpochLines]) -> list[Drop]:
        return [event for event in lines[0].events if isinstance(event, Drop)]


class ProgramReport(RunReport):
    """Print the training of several runs together: means over all, without their drops."""

    prints_drops = False

    def on_start(self, info: TrainingInfo) -> None:
        """Print nothing: a sweep prints what its programs have in common."""

    def on_finish(self, run: Run, seconds: float) -> None:
        """Print nothing: a sweep ends with a table of all runs."""
