"""A training in a notebook: one bar. Elsewhere each epoch is a plain line."""

import base64
import contextlib
import html
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from plateau_train.config import Settings, as_arguments
from plateau_train.report.console import Update, make_console, printable
from plateau_train.report.progress import ProgramReport, RunReport, show_range
from plateau_train.run.info import TrainingInfo
from plateau_train.run.journal import EpochLines
from plateau_train.run.reader import Run
from plateau_train.run.records import mean_scores

REFRESH_SECONDS = 0.2  # between two updates of the bar within an epoch


def make_report(*, is_quiet: bool, is_sweep: bool = False) -> RunReport:
    """Return the report of a training that was started from Python."""
    if is_in_notebook() and not is_quiet:
        return NotebookReport()
    return (PlainSweepReport if is_sweep else PlainReport)(is_quiet=is_quiet)


def is_in_notebook() -> bool:
    """Return whether the code runs in a kernel, whose front end shows HTML."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None) is not None


class _Plain(RunReport):
    """What is printed in plain lines, without a bar."""

    def __init__(self, *, is_quiet: bool) -> None:
        super().__init__(is_quiet=is_quiet)
        self._console = make_console(is_plain=True)

    def loading(self) -> contextlib.AbstractContextManager[Update | None]:
        return contextlib.nullcontext()

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Print how far the training got, and the call that continues it."""
        if not self.is_quiet:
            super().on_stop(folder, *map(as_arguments, (message, hint)))


class PlainReport(_Plain):
    """Print each epoch of a run as a plain line; if quiet, nothing but warnings."""

    def on_finish(self, run: Run, seconds: float) -> None:
        """Print how the run ended."""
        if not self.is_quiet:
            super().on_finish(run, seconds)


class PlainSweepReport(_Plain, ProgramReport):
    """Print each run of a sweep as a plain line when it is done; if quiet, only warnings."""

    def _show(self, line: str) -> None:
        if not self.is_quiet:
            self._console.print(printable(line))


class NotebookReport(RunReport):
    """Show a training as one bar, which is updated in its place and needs no JavaScript."""

    def __init__(self) -> None:
        super().__init__(is_quiet=False)
        self._display: Any = None
        self._epoch, self._num_epochs, self._share = 0, 1, 0.0  # the share of the epoch is trained
        self._metrics, self._folder, self._is_running = "", "", False
        self._updated = 0.0

    def loading(self) -> contextlib.AbstractContextManager[Update | None]:
        """Show the bar."""
        self._update("loading the data")
        return contextlib.nullcontext(self._on_decoded)

    def _on_decoded(self, num_done: int, num_images: int) -> None:
        """Show how many images are decoded, a few times a second."""
        if time.monotonic() - self._updated > REFRESH_SECONDS:
            self._update(f"loading the data, {num_done:,} of {num_images:,} images")

    def on_start(self, info: TrainingInfo) -> None:
        """Warn where the rate cannot drop."""
        self._folder, self._is_running = str(info.directory.path), True
        self._names.append(info.directory.path.name)
        self._warn_of_no_drops(info)

    def on_epoch_start(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        """Show that the first epoch is compiled."""
        self._epoch, self._num_epochs, self._num_steps = epoch, num_epochs, num_steps
        self._share = 0.0
        if not self._metrics:
            self._update("compiling, scoring the untrained network")

    def on_chunk(self, step: int, loss: float) -> None:
        """Move the bar, a few times a second."""
        self._share = step / self._num_steps
        if time.monotonic() - self._updated > REFRESH_SECONDS:
            self._update(f"loss {loss:.4f}, {self._metrics}")

    def on_epoch(self, lines: Sequence[EpochLines], settings: Settings) -> None:
        """Show the metrics of an epoch, which are means over all seeds."""
        self._warn(lines, num_replicas=len(lines) * len(settings.run.seeds))
        records = [record for written in lines for record in written.records]
        if len(self._names) > 1:  # a mean over runs with different settings says nothing
            self._metrics = f"{len(self._names)} runs"
        elif records:
            scores = mean_scores(records).items()
            parts = [f"{split} accuracy {each.accuracy.mean:.4f}" for split, each in scores]
            scales = [record.scale for record in records]
            self._metrics = ", ".join((*parts, f"scale {show_range(scales)}"))
        self._share = 1
        self._update(self._metrics)

    def on_finish(self, run: Run, seconds: float) -> None:
        """Show what the last run has and where it is."""
        self._is_running = False
        self._end(f"done in {seconds:.0f} s", run.directory.path)

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Show how far the training got, and the call that continues it."""
        del folder  # the call names it
        first, *_ = as_arguments(hint).split("\n")
        self._update(f"{as_arguments(message)}: {first}")

    def close(self) -> None:
        """Show where a training stopped that did not finish."""
        if self._is_running:
            self._end("stopped", self._folder)
        self._names.clear()
        self._metrics, self._is_running = "", False

    def _end(self, how: str, folder: Path | str) -> None:
        self._update(", ".join(str(part) for part in (how, self._metrics, folder) if part))

    def _update(self, text: str) -> None:
        """Draw the bar again, or for the first time."""
        display = import_module("IPython.display")
        self._updated = time.monotonic()
        line = f"epoch {self._epoch}/{self._num_epochs}: {text}"
        trained = self._epoch - 1 + self._share if self._epoch else 0
        bar = f'<progress value="{trained:.3f}" max="{self._num_epochs}"></progress>'
        content = {"text/plain": line, "text/html": f"{bar} {html.escape(line)}"}
        if self._display is None:
            self._display = display.display(content, raw=True, display_id=True)
        else:
            self._display.update(content, raw=True)


def show_figure(figure: Any) -> str:
    """Return a figure as the source of an HTML image."""
    encoded = base64.b64encode(figure._repr_png_()).decode()
    return f'<img src="data:image/png;base64,{encoded}" style="max-width: 100%">'
