"""A training on the terminal: its header, progress bar, epochs, drops and end."""

import contextlib
import datetime
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from plateau_train.config import DECAYS, SETTINGS, PlateauSettings, Settings
from plateau_train.errors import PROGRAM, RunError
from plateau_train.numerics.nearest_miss import find_nearest_miss, on_cpu
from plateau_train.report.console import (
    Column,
    Table,
    Update,
    busy,
    in_epochs,
    lay_out,
    make_console,
    print_rows,
    print_stop,
    printable,
)
from plateau_train.report.replay import describe_miss, read_series, replay_series
from plateau_train.run.history import History, early_endings
from plateau_train.run.info import TrainingInfo
from plateau_train.run.journal import EpochLines
from plateau_train.run.reader import Run
from plateau_train.run.records import Drop, Ending, EpochRecord, RunWarning, mean_scores
from plateau_train.run.results import Results, ScaleRange

log = logging.getLogger("plateau_train")


class RunReport:
    """Print the training of one run; the training loop calls the methods."""

    def __init__(self, *, is_quiet: bool) -> None:
        self.is_quiet = is_quiet
        self._console = make_console()
        self._progress: Progress | None = None
        self._titles: Sequence[object] = ()  # of the columns above the last row
        self._last_epoch = -1
        self._steps_per_epoch = 1
        self._names: list[str] = []  # of the runs of a program, if there may be several

    def loading(self) -> contextlib.AbstractContextManager[Update | None]:
        """Show that the data are loaded."""
        return contextlib.nullcontext() if self.is_quiet else busy("loading the data")

    def on_start(self, info: TrainingInfo) -> None:
        """Print the header: what is about to be trained."""
        self._last_epoch, self._steps_per_epoch = info.last_epoch, info.steps_per_epoch
        if not self.is_quiet:
            print_rows(describe_header(info), to_stderr=True)
        self._warn_of_no_drops(info)

    def on_epoch_start(self, epoch: int, num_epochs: int, num_steps: int) -> None:
        """Start the progress bar of an epoch."""
        if self.is_quiet or not self._console.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                # Not up to the edge, where the terminal's echo of Ctrl-C would break the line.
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # a log file is not above the bar
            )
            self._progress.add_task("", loss="")
            self._progress.start()
        self._progress.reset(
            self._progress.task_ids[0],
            total=num_steps if epoch > 0 else None,
            description=f"epoch {epoch}/{num_epochs}",
            loss="" if epoch > 0 else "compiling, scoring the untrained network",
        )

    def on_chunk(self, step: int, loss: float) -> None:
        """Move the progress bar to a step of the epoch."""
        if self._progress is not None:
            self._progress.update(
                self._progress.task_ids[0], completed=step, loss=f"loss {loss:.4f}"
            )

    def on_epoch(self, lines: Sequence[EpochLines], settings: Settings) -> None:
        """Print the metrics of an epoch, its drops, and the replicas that diverged in it.

        Of several replicas, means and standard deviations are printed.
        """
        num_replicas = len(lines) * len(settings.run.seeds)
        events = [event for written in lines for event in written.events]
        self._warn(lines, num_replicas)
        records = [record for written in lines for record in written.records]
        if self.is_quiet or not records:
            return
        seconds = sum(timing.seconds for written in lines for timing in written.timings)
        self._print_epoch(records, settings, num_replicas, seconds)
        for event in events:
            if isinstance(event, Drop) or (isinstance(event, Ending) and event.is_early):
                seed = f"seed {event.seed}: " if num_replicas > 1 else ""
                line = Text(f"{seed}{event.describe()}", style="bold yellow")
                is_terminal = self._console.is_terminal
                self._console.print(Padding.indent(line, 6) if is_terminal else line)

    def on_finish(self, run: Run, seconds: float) -> None:
        """Print how the run ended and what to do next; if quiet, only the path of its folder."""
        self.close()
        if self.is_quiet:
            print(printable(run.directory.path), flush=True)
            return
        duration = f" in {datetime.timedelta(seconds=round(seconds))}"
        if self._last_epoch >= 0:
            duration = f", those after epoch {self._last_epoch}{duration}"
        print_rows(describe_end(run, duration))

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Print how far a run got and how to continue it; if quiet, only the path of its folder."""
        if self.is_quiet:
            print(printable(folder), flush=True)
        else:
            print_stop(message, hint)

    def close(self) -> None:
        """Remove the progress bar from the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _warn_of_no_drops(self, info: TrainingInfo) -> None:
        if warning := warn_of_no_drops(info.settings, info.steps_per_epoch):
            log.warning("%s", warning)

    def _warn(self, lines: Sequence[EpochLines], num_replicas: int) -> None:
        """Log the warnings of an epoch, and which replicas diverged in it, as one message."""
        messages = []
        for run, written in enumerate(lines):
            name = f"{self._names[run]}, " if self._names else ""
            for event in written.events:
                if isinstance(event, Drop) or (isinstance(event, Ending) and event.is_complete):
                    continue
                if num_replicas > 1:
                    messages.append(f"{name}seed {event.seed}: {event.message}")
                elif isinstance(event, RunWarning):  # the error says how the only replica ended
                    messages.append(event.message)
        if messages:
            log.warning("%s", "\n".join(messages))

    def _print_epoch(
        self, records: Sequence[EpochRecord], settings: Settings, num_replicas: int, seconds: float
    ) -> None:
        num_epochs, wait = settings.run.epochs, None
        if num_replicas == 1 and settings.optimizer.schedule == "plateau":
            num_warmup = settings.optimizer.warmup_steps(self._steps_per_epoch)
            patience = settings.plateau.count(settings.plateau.patience, self._steps_per_epoch)
            is_warmup = records[0].step < num_warmup
            wait = "warm" if is_warmup else f"{records[0].wait}/{patience}"
            wait = wait.rjust(2 * len(f"{patience}") + 2)
        if not self._console.is_terminal:
            self._console.print(Text(_epoch_line(records, num_replicas, num_epochs, wait)))
            return
        columns = _epoch_columns(records, num_replicas, num_epochs, wait, seconds)
        row, omitted = lay_out(Table([()], columns), self._console.width)
        titles = [column.header for column in row.columns]
        row.show_header, self._titles = titles != self._titles, titles
        if row.show_header and omitted:
            self._console.print(omitted)
        self._console.print(row)


class ProgramReport(RunReport):
    """Print the training of several runs together: the progress, and a line for each run."""

    def on_start(self, info: TrainingInfo) -> None:
        """Print nothing: a sweep prints what its programs have in common."""
        self._names.append(info.directory.path.name)

    def on_epoch(self, lines: Sequence[EpochLines], settings: Settings) -> None:
        """Print warnings only: a mean over runs with different settings says nothing."""
        self._warn(lines, num_replicas=len(lines) * len(settings.run.seeds))

    def on_finish(self, run: Run, seconds: float) -> None:
        """Print what a run achieved; a sweep ends with a table of all runs."""
        del seconds  # the runs of a program have one duration together
        name, results = run.directory.path.name, run.results
        accuracy = f"{results.split} accuracy {results.final_score:.4f}"
        drops = results.drops_of(run.settings)
        drops = "" if drops is None else f", drops {drops}"
        early = early_endings(run.histories)
        reasons = ", ".join(dict.fromkeys(ending.reason for ending in early))
        ended = f", {len(early)} of {len(run.histories)} seeds ended by {reasons}" if early else ""
        self._show(f"{name}: {accuracy}{drops}{ended}")

    def on_stop(self, folder: Path, message: str, hint: str) -> None:
        """Print how far a sweep got, unless quiet: the sweep prints its folder itself."""
        if not self.is_quiet:
            super().on_stop(folder, message, hint)

    def _show(self, line: str) -> None:
        log.info("%s", line)

    def close(self) -> None:
        super().close()
        self._names.clear()


def _epoch_line(
    records: Sequence[EpochRecord], num_replicas: int, num_epochs: int, wait: str | None
) -> str:
    """Return an epoch as one plain line."""
    first = records[0]
    parts = [f"epoch {first.epoch}/{num_epochs}"]
    parts += [
        f"{split} loss {loss:.4f} acc {acc:.4f}"
        for split, (loss, acc) in mean_scores(records).items()
    ]
    parts.append(f"scale {show_range([record.scale for record in records])}")
    parts.append(f"lr {show_range([record.learning_rate for record in records])}")
    if len(records) < num_replicas:
        parts.append(f"seeds left {len(records)} of {num_replicas}")
    if wait is not None:
        to_beat = "" if first.to_beat is None else f", to beat {first.to_beat:.4f}"
        cooldown = f", cooldown {first.cooldown}" if first.cooldown else ""
        wait = f"wait {wait.strip()}{to_beat}{cooldown}" if "/" in wait else "warm-up"
        parts.append(wait)
    return "  ".join(parts)


def _epoch_columns(
    records: Sequence[EpochRecord],
    num_replicas: int,
    num_epochs: int,
    wait: str | None,
    seconds: float,
) -> list[Column]:
    """Return an epoch as the row of a table that fits 80 columns without validation.

    The widths do not depend on the values: all epochs are printed under the same titles.
    """

    def cell(title: str, width: int, content: str, omit: int = 0) -> Column:
        return Column(lambda _row: content, title, omit=omit, min_width=width)

    first, scales = records[0], [record.scale for record in records]
    columns = [cell("epoch", max(5, len(f"{num_epochs}") * 2 + 1), f"{first.epoch}/{num_epochs}")]
    for split, (loss, accuracy) in mean_scores(records).items():
        for title, value, omit in ((f"{split} loss", loss, 0), ("acc", accuracy, 4)):
            columns.append(cell(title, 6, f"{value.mean:.4f}", omit))
            if num_replicas > 1:
                columns.append(cell("\N{PLUS-MINUS SIGN}", 6, f"{value.sd:.4f}", omit))
    scale = ScaleRange.of(scales)
    columns.append(cell("scale", 10, f"{scale.geometric_mean:.6g}", 6))
    if num_replicas > 1:
        columns.append(cell("lowest", 10, f"{scale.min:.6g}", 3))
        columns.append(cell("highest", 10, f"{scale.max:.6g}", 3))
    else:
        columns.append(cell("lr", 9, f"{first.learning_rate:.4g}", 2))
    if len(records) < num_replicas:
        columns.append(cell("seeds", 5, f"{len(records)}/{num_replicas}", 1))
    if wait is not None:
        shown = f"cd {first.cooldown}" if first.cooldown else wait
        columns.append(cell("wait", len(wait), shown.strip()))
        to_beat = "" if first.to_beat is None else f"{first.to_beat:.4f}"
        columns.append(cell("to beat", 7, to_beat, 5))
    return [*columns, cell("time", 5, f"{seconds:.1f}s", 1)]


def describe_header(info: TrainingInfo) -> dict[str, str]:
    """Return what is about to be trained, and where."""
    rows = describe_training(info)
    rows["run"] = str(info.directory.path)
    if info.last_epoch >= 0:
        rows["resumed"] = f"after epoch {info.last_epoch} of {info.settings.run.epochs}"
    return rows


def describe_training(info: TrainingInfo) -> dict[str, str]:
    """Return what is about to be trained, and the patience in epochs."""
    settings, optimizer = info.settings, info.settings.optimizer
    seeds = settings.run.seeds
    rows = {
        "data": info.data,
        "model": info.model,
        "training": f"{optimizer.optimizer} at {optimizer.learning_rate:g}, "
        f"{in_epochs(settings.run.epochs)} of {info.steps_per_epoch} steps "
        f"of {settings.data.batch_size} images, "
        f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}",
        **_describe_schedule(info),
        "device": info.devices,
    }
    if len(seeds) > 1:
        rows["replicas"] = f"{len(seeds)} seeds in one program; {info.memory}"
    return rows


def _describe_schedule(info: TrainingInfo) -> dict[str, str]:
    settings, plateau, optimizer = info.settings, info.settings.plateau, info.settings.optimizer
    steps_per_epoch, rows = info.steps_per_epoch, _describe_warmup(info)
    floor, length = f"{plateau.min_scale:g}", in_epochs(settings.run.epochs)
    baselines = {
        "constant": "the scale stays 1",
        **dict.fromkeys(DECAYS, f"the scale falls from 1 to {floor} over {length}"),
        "one-cycle": f"the scale rises from 0.04 to 1 in 30 % of {length}, then falls to 4e-06",
        "schedule-free": "the scale stays 1, and the parameters are averaged",
        "step": f"the scale is multiplied by {plateau.factor:g} "
        f"every {in_epochs(optimizer.step_epochs)}, down to {floor}",
    }
    if description := baselines.get(optimizer.schedule):
        rows["schedule"] = f"{optimizer.schedule}: {description}; the plateau rule only records"
        return rows | _describe_endings(settings, steps_per_epoch)
    epochs = plateau.observation_epochs(steps_per_epoch)
    patience, cooldown = (
        f"{count} ({in_epochs(count * epochs)})"
        for span in (plateau.patience, plateau.cooldown)
        for count in [plateau.count(span, steps_per_epoch)]
    )
    rows["plateau"] = (
        f"an observation is the {plateau.describe_observation()} ({in_epochs(epochs)}); "
        f"patience {patience}, cooldown {cooldown}, factor {plateau.factor:g}, "
        f"rtol {plateau.rtol:g}, atol {plateau.atol:g}"
    )
    brought_back = {
        "restore-best": "the parameters and the state of the optimizer at the best observation",
        "restore-params": "the parameters at the best observation",
    }
    if plateau.on_drop in brought_back:
        rows["on drop"] = f"the next step begins with {brought_back[plateau.on_drop]}"
    return rows | _describe_endings(settings, steps_per_epoch)


def _describe_warmup(info: TrainingInfo) -> dict[str, str]:
    optimizer = info.settings.optimizer
    num_steps = optimizer.warmup_steps(info.steps_per_epoch)
    if num_steps == 0:
        return {}
    return {
        "warm-up": f"{in_epochs(optimizer.warmup_epochs)} ({num_steps:,} "
        f"step{'s' * (num_steps > 1)}), the scale times a factor that rises from "
        f"{optimizer.warmup_start:g} to 1; the rule observes nothing until then"
    }


def _describe_endings(settings: Settings, steps_per_epoch: int) -> dict[str, str]:
    """Return what else than the number of epochs ends the run."""
    plateau, reasons = settings.plateau, []
    if settings.optimizer.schedule == "plateau":
        if plateau.max_drops is not None:
            drops = f"{plateau.max_drops} drop{'s' * (plateau.max_drops != 1)}"
            reasons.append(f"the scale would drop once more after {drops}")
        if plateau.stop_at_min_scale:
            reasons.append(f"the scale would drop and is {plateau.min_scale:g} already")
    if plateau.early_stop is not None:
        epochs = in_epochs(plateau.early_stop * plateau.observation_epochs(steps_per_epoch))
        reasons.append(
            f"{plateau.early_stop} observations ({epochs}) since the best one or the last drop "
            "are no improvement"
        )
    return {"ends early": f"if {', or if '.join(reasons)}"} if reasons else {}


def warn_of_no_drops(settings: Settings, steps_per_epoch: int) -> str | None:
    """Return a warning if the run is too short for a drop, or no early stop can end it."""
    plateau = settings.plateau
    if settings.optimizer.schedule != "plateau":
        return _warn_of_no_effect(settings)
    unit, num_values = "epochs", settings.run.epochs
    if plateau.split == "train":
        unit, num_values = "steps", settings.run.epochs * steps_per_epoch
    # The first observation always improves; the others count towards patience.
    patience = plateau.count(plateau.patience, steps_per_epoch)
    needed = (1 + patience) * plateau.accumulation_size
    warm_steps = settings.optimizer.warmup_steps(steps_per_epoch)
    num_values -= warm_steps // steps_per_epoch if unit == "epochs" else warm_steps
    if num_values >= needed:
        return _warn_of_no_early_stop(settings, patience, steps_per_epoch)
    return (
        f"The rate cannot drop in this run: a drop takes {needed:,} {unit}, "
        f"(1 + patience) x accumulation size, and the run has {num_values:,}."
    )


def _warn_of_no_effect(settings: Settings) -> str | None:
    """Return a warning if options of drops were given for a schedule that has none."""
    default = PlateauSettings()
    names = ("max_drops", "stop_at_min_scale", "on_drop")
    given = [
        setting.flag
        for setting in SETTINGS
        if setting.key in names and setting.value_in(settings) != getattr(default, setting.key)
    ]
    schedule = settings.optimizer.schedule
    effect = f"no effect with --schedule {schedule}: its scale does not follow the rule."
    return (
        f"{' and '.join(given)} {'has' if len(given) == 1 else 'have'} {effect}" if given else None
    )


def _warn_of_no_early_stop(settings: Settings, patience: int, steps_per_epoch: int) -> str | None:
    """Return a warning if every early stop comes after a drop, which begins its count again."""
    plateau = settings.plateau
    longest = patience + plateau.count(plateau.cooldown, steps_per_epoch)
    if plateau.early_stop is None or plateau.early_stop < longest or plateau.min_scale > 0:
        return None
    return (
        f"--early-stop {plateau.early_stop} cannot end this run: the rate drops after at most "
        f"{longest} observations without improvement, and each drop begins the count again. With "
        "a --min-scale above 0 it can, once the scale is there."
    )


def describe_end(run: Run, duration: str) -> dict[str, str]:
    """Return how a run ended, and what to type next."""
    results, dataset = run.results, run.environment.dataset
    mean = "mean " if len(run.histories) > 1 else ""
    planned = f" of {run.settings.run.epochs}" if early_endings(run.histories) else ""
    fallback = f", on {dataset.name}, NOT on Fashion-MNIST" if dataset.fallback else ""
    return {
        "done": f"{in_epochs(results.epoch)}{planned}{duration}{fallback}",
        **{
            split: f"loss {loss:.4f}, accuracy {accuracy:.4f}"
            for split, (loss, accuracy) in results.final.items()
        },
        "best epoch": f"{results.best_epoch} (highest {mean}{results.split} accuracy): "
        + ", ".join(f"{split} {accuracy:.4f}" for split, (_, accuracy) in results.best.items()),
        **_describe_early(run.histories),
        **_describe_scale(results, run.settings),
        **_describe_nearest_miss(run),
        **({"plot": str(run.directory.plot)} if run.directory.plot.exists() else {}),
        "next": f"{PROGRAM} evaluate {run.directory}",
    }


def _describe_early(histories: Sequence[History]) -> dict[str, str]:
    """Return why replicas ended before the last epoch, if some did."""
    endings = early_endings(histories)
    if not endings:
        return {}
    if len(histories) == 1:
        return {"ended": endings[0].message}
    epochs = show_range([ending.epoch for ending in endings])
    reasons = ", ".join(dict.fromkeys(ending.reason for ending in endings))
    number = f"{len(endings)} of {len(histories)} seeds"
    return {"ended": f"{number} by their rule ({reasons}), epochs {epochs}"}


def _describe_scale(results: Results, settings: Settings) -> dict[str, str]:
    """Return the final scale and, of the plateau rule, the drops."""
    final = f"final scale {show_range(results.final_scales)}"
    if results.drops_of(settings) is None:
        return {"scale": final}
    if len(results.seeds) > 1:
        return {"drops": f"{results.num_drops:.1f} per seed, {final}"}
    (epochs,) = results.drop_epochs
    if not epochs:
        return {"drops": f"no drops, {final}"}
    listed = ", ".join(map(str, epochs))
    return {"drops": f"{len(epochs)} (epoch{'s' if len(epochs) > 1 else ''} {listed}), {final}"}


def _describe_nearest_miss(run: Run) -> dict[str, str]:
    """Return the nearest miss of the plateau rule, that of the seed that came nearest."""
    found = []
    with on_cpu():
        for history in run.completed if run.settings.optimizer.schedule == "plateau" else ():
            with contextlib.suppress(RunError):  # nothing was observed
                series = read_series(run, history, run.settings)
                rows = replay_series(series)
                if miss := find_nearest_miss(series.rule, rows):
                    found.append((series, rows, miss))
        if not found:
            return {}
        series, rows, miss = max(found, key=lambda each: each[-1].wait)
        seed = f"seed {series.seed}: " if len(run.settings.run.seeds) > 1 else ""
        return {"nearest miss": f"{seed}{describe_miss(series, rows, miss)}"}


def show_range(values: Sequence[float]) -> str:
    """Return the lowest and the highest value as text, or the only one."""
    return " to ".join(dict.fromkeys(f"{value:.6g}" for value in (min(values), max(values))))
