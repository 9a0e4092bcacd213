"""Compare runs: their results, the differences with confidence intervals, and their settings."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plateau_train import plots
from plateau_train.api.options import PathLike, for_python
from plateau_train.api.pictures import draw_into
from plateau_train.config import FIGURE_OPTIONS, SETTINGS, FigureOptions, Settings
from plateau_train.errors import PROGRAM, ConfigError
from plateau_train.report import console
from plateau_train.report.console import MISSING, Column, Table, look_up
from plateau_train.report.rows import Columns, Row, to_columns, to_html
from plateau_train.report.stats import CONFIDENCE, Difference, difference
from plateau_train.run.directory import is_sweep, list_runs
from plateau_train.run.history import History
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd
from plateau_train.run.results import ROUNDING, ReplicaResult, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("plateau_train")

BY_FLAG = {setting.flag: setting for setting in SETTINGS}
NAME = Column("name", "run", is_number=False)


class ComparedRun(NamedTuple):
    """What a run achieved, and its differences from the first one."""

    name: str  # unique among the runs
    folder: str
    settings: Settings
    histories: Sequence[History]  # of the replicas that did not diverge
    results: Results
    seconds: float | None
    level_epochs: Sequence[int | None]  # of each seed, the first that reaches the level
    differing: Mapping[str, str]  # flags and values of the settings that differ between the runs
    differences: Mapping[str, Difference]  # by the name of the metric; empty for the first run

    @property
    def num_drops(self) -> MeanStd | None:
        return self.results.drops_of(self.settings)

    def rows(self, level: float) -> Iterator[Row]:
        """Yield a row for each replica."""
        varied = (BY_FLAG[flag] for flag in self.differing)
        settings = {each.key: each.effective_value(self.settings) for each in varied}
        for history, epoch in zip(self.histories, self.level_epochs, strict=True):
            result = ReplicaResult.of(history, self.settings)._asdict()
            row = {"run": self.name, "folder": self.folder} | settings | result
            yield row | {"level": level, "level_epoch": epoch, "run_seconds": self.seconds}


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What runs achieved, and the test accuracy whose first epoch is reported."""

    runs: Sequence[ComparedRun]
    level: float
    is_explicit_level: bool

    def result_rows(self) -> list[Row]:
        """Return a row for each replica of each run."""
        return [row for run in self.runs for row in run.rows(self.level)]

    def difference_rows(self) -> list[Row]:
        """Return a row for each metric of each run after the first one."""
        return [
            {
                "run": run.name,
                "baseline": self.runs[0].name,
                "metric": metric,
                "difference": each.mean,
                "low": None if each.half_width is None else each.mean - each.half_width,
                "high": None if each.half_width is None else each.mean + each.half_width,
                "confidence": CONFIDENCE,
                "method": each.method,
            }
            for run in self.runs
            for metric, each in run.differences.items()
        ]

    @property
    def results(self) -> Columns:
        """What each replica of each run achieved, as columns."""
        return to_columns(self.result_rows())

    @property
    def differences(self) -> Columns:
        """The differences from the first run, as columns."""
        return to_columns(self.difference_rows())

    @for_python(FIGURE_OPTIONS)
    def plot(self, *, path: PathLike | None = None, **options: Any) -> "Figure":
        """Draw the panels with all runs; also save them to ``path`` if given."""
        return draw_into(path, partial(draw, self), options)

    def tables(self) -> tuple[Table, Table, Table]:
        """Return the tables of results, of differences, and of the settings that differ."""
        return _results_table(self), _differences_table(self.runs), _settings_table(self.runs)

    def __repr__(self) -> str:
        return f"Comparison({[run.name for run in self.runs]})"

    def _repr_html_(self) -> str:
        return "".join(to_html(table) for table in self.tables() if len(table.columns) > 1)


def compare(paths: Sequence[Path], *, level: float | None = None) -> Comparison:
    """Compare runs with the first one; a sweep stands for its runs.

    ``level`` is a test accuracy: the first epoch that reaches it is a result. The default is the
    highest that every replica reaches. Raises ``ConfigError`` for fewer than two different runs and
    for a level that is not an accuracy, ``RunError`` for a folder that is not a run or is damaged.
    """
    if level is not None and not (isinstance(level, Real) and 0 < level <= 1):
        shown = f"{level:g}" if isinstance(level, Real) else repr(level)
        raise ConfigError(
            f"--level must be an accuracy above 0 and at most 1, got {shown}",
            hint="write 87 % as 0.87",
        )
    runs = _read_runs(paths)
    if mismatches := list(_find_mismatches(runs)):
        log.warning("\n".join(mismatches))
    reached = min(
        max(record.test_accuracy for record in history.records)
        for run in runs.values()
        for history in run.completed
    )
    return Comparison(_compare(runs, level or reached), level or reached, level is not None)


def _read_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """Open the runs, and those of each sweep, under short names.

    A name is that of the folder without its time or number; where that is not unique, the whole
    name, and where that is not unique, the path.
    """
    paths = [run for path in paths for run in (list_runs(path) if is_sweep(path) else [path])]
    if len(paths) < 2:
        raise ConfigError(
            f"compare needs at least two runs, got {len(paths)}",
            hint=f"{PROGRAM} compare runs/ONE runs/TWO; {PROGRAM} runs lists them",
        )
    runs: dict[Path, Run] = {}
    for path in paths:
        run = Run.open(path)
        folder = run.directory.path.resolve()
        if folder in runs:
            raise ConfigError(
                f"{runs[folder].directory} and {path} are the same run", hint="give each run once"
            )
        runs[folder] = run
    levels = [
        [re.sub(r"^(\d{8}-\d{6}|\d{3,}(?=-\w+=))-(?=.)", "", folder.name) for folder in runs],
        [folder.name for folder in runs],
        [str(folder) for folder in runs],
    ]
    names = (
        next(name for name, level in zip(names, levels, strict=True) if level.count(name) == 1)
        for names in zip(*levels, strict=True)
    )
    return dict(zip(map(console.printable, names), runs.values(), strict=True))


def _find_mismatches(runs: Mapping[str, Run]) -> Iterator[str]:
    """Yield what makes runs hard to compare."""
    for path, what in (
        ("data.dataset", "on different data sets"),
        ("data.test_examples", "scored on different test images"),
        ("run.epochs", "trained for different numbers of epochs"),
    ):
        values = {name: look_up(run.settings, path) or "all" for name, run in runs.items()}
        if len(set(values.values())) > 1:
            texts = (f"{value} ({name})" for name, value in values.items())
            yield f"The runs are {what}: {', '.join(texts)}."
    for name, run in runs.items():
        num_epochs, num_seeds = run.settings.run.epochs, len(run.settings.run.seeds)
        if run.results.epoch < num_epochs:
            yield (
                f"{name} has finished epoch {run.results.epoch} of {num_epochs}: "
                "its final values are those of that epoch."
            )
        if num_early := num_seeds - len(run.completed):
            yield f"{name}: {num_early} of {num_seeds} seeds ended earlier and are left out."


def _find_differing_settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Return each run's values of the settings that affect results and are not the same in all."""
    values = {
        setting.flag: [
            setting.text(setting.value_in(run.settings))
            if setting.matters_in(run.settings)
            else MISSING
            for run in runs
        ]
        for setting in SETTINGS
        if setting.affects_results
    }
    differing = {flag: texts for flag, texts in values.items() if len({*texts} - {MISSING}) > 1}
    return [{flag: texts[i] for flag, texts in differing.items()} for i in range(len(runs))]


def _compare(runs: Mapping[str, Run], level: float) -> list[ComparedRun]:
    """Read what each run achieved, and compute its differences from the first one."""
    baseline, *_ = runs.values()
    settings = _find_differing_settings(list(runs.values()))
    compared = []
    for (name, run), differing in zip(runs.items(), settings, strict=True):
        differences = {
            f"final_{metric}": difference(_finals(run, metric), _finals(baseline, metric))
            for metric in ("test_accuracy", "test_loss")
            if run is not baseline
        }
        level_epochs = [
            next((e.epoch for e in history.records if e.test_accuracy > level - ROUNDING), None)
            for history in run.completed
        ]
        facts = run.settings, run.completed, run.results, run.seconds, level_epochs, differing
        compared.append(ComparedRun(name, str(run.directory.path), *facts, differences))
    return compared


def _finals(run: Run, metric: str) -> dict[int, float]:
    """Return a metric of the last epoch for each seed."""
    return {history.seed: getattr(history.records[-1], metric) for history in run.completed}


def _results_table(comparison: Comparison) -> Table:
    runs, level = comparison.runs, comparison.level
    columns = [
        NAME,
        Column("settings.schedule_name", "rule", is_number=False, omit=3),
        Column("results.seeds", "seeds", len, omit=4),
        Column("results.highest_test_accuracy", "best", ".4f"),
        Column("results.highest_test_epoch", "at", omit=6),
        Column("results.chosen_by_val", "by val", ".4f"),
        Column("results.final.test.accuracy", "final", ".4f"),
        Column("level_epochs", f"to {level:.4g}", _level_text),
        Column("num_drops", "drops", omit=5),
        Column("results.drop_epochs", "in epochs", _drops_text, is_number=False, omit=1),
        Column("seconds", "seconds", ",.0f", omit=2),
    ]
    shown = [each for each in columns if any(each.text_of(run) != MISSING for run in runs)]
    caption = f"test accuracy: best, final, and the first epoch that reaches {level:.4g}"
    caption += "" if comparison.is_explicit_level else ", which every seed reaches"
    if any(run.results.chosen_by_val for run in runs):
        caption += "; by val: at the epoch that is best on held-out images"
    return Table(runs, shown, caption)


def _differences_table(runs: Sequence[ComparedRun]) -> Table:
    columns = [
        NAME,
        Column("differences.final_test_accuracy", "final test accuracy"),
        Column("differences.final_test_loss", "final test loss", omit=1),
        Column("differences.final_test_accuracy.method", "interval", is_number=False),
    ]
    caption = (
        f"difference from {runs[0].name}, and the {100 * CONFIDENCE:.0f} % confidence interval "
        "of its mean over seeds"
    )
    return Table(runs[1:], columns, caption)


def _settings_table(runs: Sequence[ComparedRun]) -> Table:
    """Return a column for each setting that differs."""
    columns = (Column(f"differing.{flag}", flag, is_number=False) for flag in runs[0].differing)
    return Table(runs, [NAME, *columns], "settings that differ")


def _level_text(epochs: Sequence[int | None]) -> str:
    """Return the mean of the epochs, and how many seeds it is over if it is not over all."""
    reached = [epoch for epoch in epochs if epoch is not None]
    share = "" if len(reached) == len(epochs) else f" ({len(reached)} of {len(epochs)})"
    return f"{MeanStd.of(reached)}{share}" if reached else MISSING


def _drops_text(epochs_of_seeds: Sequence[Sequence[int]]) -> str:
    """Return the epochs of the drops of one seed, or the mean first and last epoch of several."""
    with_drops = [epochs for epochs in epochs_of_seeds if epochs]
    if not with_drops:
        return MISSING
    if len(epochs_of_seeds) == 1:
        return ", ".join(map(str, epochs_of_seeds[0]))
    first, last = (MeanStd.of([epochs[end] for epochs in with_drops]) for end in (0, -1))
    return f"first {first}, last {last}"


def draw(comparison: Comparison, options: FigureOptions) -> "Figure":
    """Draw the panels with all runs."""
    runs = comparison.runs
    plotted = [plots.PlottedRun(run.settings, run.histories, run.name) for run in runs]
    data = dict.fromkeys(run.settings.data.title for run in runs)
    heading = f"{len(runs)} runs on {' and '.join(data)}"
    return plots.draw_comparison(plotted, heading, options)
