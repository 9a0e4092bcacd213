"""Compare runs: their results, the differences with confidence intervals, and their settings."""

import contextlib
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
from plateau_train.config import FIGURE_OPTIONS, SETTINGS, FigureOptions, Resolved, Settings
from plateau_train.config.settings import Seeds
from plateau_train.errors import PROGRAM, ConfigError, RunError
from plateau_train.report import console
from plateau_train.report.console import MISSING, Column, Table, look_up
from plateau_train.report.rows import Columns, Row, to_columns, to_html
from plateau_train.report.stats import (
    CONFIDENCE,
    POWER,
    SMALL_DIFFERENCE,
    Difference,
    difference,
)
from plateau_train.run.directory import is_sweep, list_runs
from plateau_train.run.environment import ModelFacts
from plateau_train.run.history import History, completed, early_endings
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd
from plateau_train.run.results import ROUNDING, ReplicaResult, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("plateau_train")

BY_FLAG = {setting.flag: setting for setting in SETTINGS}
NAME = Column("title", "run", is_number=False)


class ComparedRun(NamedTuple):
    """What a run, or several as one, achieved, and its differences from the first one."""

    name: str  # unique among the runs
    num_runs: int
    folders: Sequence[str]  # of each replica
    settings: Settings
    histories: Sequence[History]  # of the replicas that did not diverge
    results: Results
    seconds: float | None
    level_epochs: Sequence[int | None]  # of each seed, the first that reaches the level
    differing: Mapping[str, str]  # flags and values of the settings that differ between the runs
    differences: Mapping[str, Difference]  # by the name of the metric; empty for the first run

    @property
    def title(self) -> str:
        """The name, and the number of runs if they are several."""
        return self.name + f" ({self.num_runs} runs)" * (self.num_runs > 1)

    @property
    def num_drops(self) -> MeanStd | None:
        return self.results.drops_of(self.settings)

    def rows(self, level: float) -> Iterator[Row]:
        """Yield a row for each replica."""
        varied = (BY_FLAG[flag] for flag in self.differing)
        settings = {each.key: each.effective_value(self.settings) for each in varied}
        for history, epoch in zip(self.histories, self.level_epochs, strict=True):
            result = ReplicaResult.of(history, self.settings)._asdict()
            row = {"run": self.name, "folder": self.folders[history.replica]} | settings | result
            row |= {"level": level, "level_epoch": epoch}
            yield row | {"run_seconds": self.seconds, "num_runs": self.num_runs}


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
                "seeds_for_0_001": each.seeds_for_0_001,
                "seeds_for_difference": each.seeds_for_difference,
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


class RunGroup(NamedTuple):
    """A run, or several that differ in their seed alone, as one run with all their replicas."""

    name: str  # of the first run, unique among the groups
    runs: Sequence[Run]
    settings: Settings  # of the first run, with all seeds
    histories: Sequence[History]  # numbered anew
    folders: Sequence[str]  # of each replica

    @classmethod
    def of(cls, name: str, runs: Sequence[Run], dataset: str) -> "RunGroup":
        """Group runs whose data have this name or path.

        Raises ``ConfigError`` where two of them have a seed in common.
        """
        by_seed: dict[int, Run] = {}
        for run in runs:
            for seed in run.settings.run.seeds:
                if seed in by_seed:
                    raise ConfigError(
                        f"{by_seed[seed].directory} and {run.directory} have the same settings, "
                        f"and both have seed {seed}: --pool needs different seeds",
                        hint="leave out one of them",
                    )
            by_seed |= dict.fromkeys(run.settings.run.seeds, run)
        resolved = Resolved(runs[0].settings, {}).replace("dataset", dataset, "")
        settings = resolved.replace("seed", Seeds(by_seed), "").settings
        members = [(run, history) for run in runs for history in run.histories]
        histories = [each._replace(replica=number) for number, (_, each) in enumerate(members)]
        folders = [str(run.directory.path) for run, _ in members]
        return cls(name, runs, settings, histories, folders)

    @property
    def completed(self) -> list[History]:
        """The replicas without those that diverged."""
        return completed(self.histories)

    @property
    def seconds(self) -> float | None:
        """The duration of all epochs of all runs; None if that of one is not recorded."""
        seconds = [run.seconds for run in self.runs]
        return None if None in seconds else sum(filter(None, seconds))


def compare(paths: Sequence[Path], *, level: float | None = None, pool: bool = False) -> Comparison:
    """Compare runs with the first one; a sweep stands for its runs.

    ``level`` is a test accuracy: the first epoch that reaches it is a result. The default is the
    highest that every replica reaches. With ``pool``, runs that differ in their seed alone are
    replicas of one run. Raises ``ConfigError`` for fewer than two different runs, for a level that
    is not an accuracy and for replicas with the same seed, ``RunError`` for a folder that is not a
    run or is damaged.
    """
    if level is not None and not (isinstance(level, Real) and 0 < level <= 1):
        shown = f"{level:g}" if isinstance(level, Real) else repr(level)
        raise ConfigError(
            f"--level must be an accuracy above 0 and at most 1, got {shown}",
            hint="write 87 % as 0.87",
        )
    runs = _read_runs(paths)
    groups = _group(runs, pool=pool)
    if len(groups) < 2:
        raise ConfigError(
            f"compare needs at least two runs, and these {len(runs)} differ in their seed alone",
            hint="leave out --pool to compare them with each other, or add a run to compare with",
        )
    differing = _find_differing_settings(groups)
    if mismatches := list(_find_mismatches(groups, differing)):
        log.warning("\n".join(mismatches))
    reached = min(
        max(record.test_accuracy for record in history.records)
        for group in groups
        for history in group.completed
    )
    compared = _compare(groups, differing, level or reached)
    return Comparison(compared, level or reached, level is not None)


def _read_runs(paths: Sequence[Path]) -> list[Run]:
    """Open the runs, and those of each sweep; each is there once, and there are at least two."""
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
    return list(runs.values())


def _name_runs(runs: Sequence[Run]) -> list[str]:
    """Return a short name of each run.

    It is that of the folder without its time or number; where that is not unique, the whole name,
    and where that is not unique, the name in its sweep, and last the path.
    """
    folders = [run.directory.path.resolve() for run in runs]
    levels = [
        [re.sub(r"^(\d{8}-\d{6}|\d{3,}(?=-\w+=))-(?=.)", "", folder.name) for folder in folders],
        [folder.name for folder in folders],
        [f"{folder.parent.name}/{folder.name}" for folder in folders],
        [str(folder) for folder in folders],
    ]
    names = (
        next(name for name, level in zip(names, levels, strict=True) if level.count(name) == 1)
        for names in zip(*levels, strict=True)
    )
    return [console.printable(name) for name in names]


def _group(runs: Sequence[Run], *, pool: bool) -> list[RunGroup]:
    """Group the runs that differ in their seed alone, or put each into a group of its own.

    Data of one content are named as in the first run that has them: they may have been moved.
    """
    datasets: dict[str, str] = {}
    groups: dict[object, list[Run]] = {}
    for run in runs:
        data, code = _contents(run)
        datasets.setdefault(data, run.settings.data.dataset)
        settings = (each for each in SETTINGS if each.can_vary and each.key != "dataset")
        values = (each.effective_value(run.settings) for each in settings)
        groups.setdefault((data, code, *values) if pool else run, []).append(run)
    names = _name_runs([group[0] for group in groups.values()])
    return [
        RunGroup.of(name, group, datasets[_contents(group[0])[0]])
        for name, group in zip(names, groups.values(), strict=True)
    ]


def _contents(run: Run) -> tuple[str, ModelFacts | None]:
    """Return the SHA-256 of the data, and the code of the user's network, if there is one.

    A run without a readable ``environment.json`` has the name or path of the data instead.
    """
    with contextlib.suppress(RunError):
        return run.environment.dataset.sha256, run.environment.model
    return run.settings.data.dataset, None


def _find_mismatches(
    groups: Sequence[RunGroup], differing: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    """Yield what makes runs hard to compare."""
    for flag, what in (
        ("--dataset", "on different data sets"),
        ("--test-examples", "scored on different test images"),
        ("--epochs", "trained for different numbers of epochs"),
    ):
        if flag in differing[0]:
            values = zip(groups, differing, strict=True)
            texts = (f"{settings[flag]} ({group.name})" for group, settings in values)
            yield f"The runs are {what}: {', '.join(texts)}."
    for group in groups:
        num_epochs, num_seeds = group.settings.run.epochs, len(group.settings.run.seeds)
        for run in group.runs:
            if run.results.epoch < num_epochs:
                name = group.name if len(group.runs) == 1 else run.directory
                is_early = bool(early_endings(run.histories))
                yield (
                    f"{name} {'ended early, after' if is_early else 'has finished'} epoch "
                    f"{run.results.epoch} of {num_epochs}: its final values are those of "
                    f"{'the end of each seed' if is_early else 'that epoch'}."
                )
        if num_early := num_seeds - len(group.completed):
            yield f"{group.name}: {num_early} of {num_seeds} seeds ended earlier and are left out."


def _find_differing_settings(groups: Sequence[RunGroup]) -> list[dict[str, str]]:
    """Return each group's values of the settings that affect results and are not the same in all.

    A data set has its name, or its path where two have the same name.
    """
    differing: list[dict[str, str]] = [{} for _ in groups]
    for setting in (each for each in SETTINGS if each.affects_results):
        values = [
            setting.text(setting.value_in(group.settings))
            if setting.matters_in(group.settings)
            else MISSING
            for group in groups
        ]
        if len({*values} - {MISSING}) < 2:
            continue
        if setting.key == "dataset":
            names = [group.settings.data.name for group in groups]
            values = names if len({*names}) == len({*values}) else values
        for texts, value in zip(differing, values, strict=True):
            texts[setting.flag] = value
    return differing


def _compare(
    groups: Sequence[RunGroup], differing: Sequence[Mapping[str, str]], level: float
) -> list[ComparedRun]:
    """Read what each group achieved, and compute its differences from the first one."""
    baseline, *others = groups
    num_intervals = sum(len(group.completed) > 1 for group in others)
    compared = []
    for group, settings in zip(groups, differing, strict=True):
        differences = {
            f"final_{metric}": difference(
                _finals(group, metric), _finals(baseline, metric), num_runs=num_intervals
            )
            for metric in ("test_accuracy", "test_loss")
            if group is not baseline
        }
        level_epochs = [
            next((e.epoch for e in history.records if e.test_accuracy > level - ROUNDING), None)
            for history in group.completed
        ]
        compared.append(
            ComparedRun(
                name=group.name,
                num_runs=len(group.runs),
                folders=group.folders,
                settings=group.settings,
                histories=group.completed,
                results=Results.of(group.histories),
                seconds=group.seconds,
                level_epochs=level_epochs,
                differing=settings,
                differences=differences,
            )
        )
    return compared


def _finals(group: RunGroup, metric: str) -> dict[int, float]:
    """Return a metric of the last epoch for each seed."""
    return {history.seed: getattr(history.records[-1], metric) for history in group.completed}


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
    accuracy, loss = "differences.final_test_accuracy", "differences.final_test_loss"
    small, own = f"seeds for {SMALL_DIFFERENCE:g}", "seeds for it"
    columns = [
        NAME,
        Column(accuracy, "final test accuracy"),
        Column(f"{accuracy}.seeds_for_0_001", small, ",", omit=1),
        Column(f"{accuracy}.seeds_for_difference", own, ",", omit=1),
        Column(loss, "final test loss", omit=2),
        Column(f"{loss}.seeds_for_0_001", small, ",", omit=1),
        Column(f"{loss}.seeds_for_difference", own, ",", omit=1),
        Column(f"{accuracy}.method", "interval", is_number=False),
    ]
    shown = [each for each in columns if any(each.text_of(run) != MISSING for run in runs[1:])]
    caption = (
        f"difference from {runs[0].title}, and the {100 * CONFIDENCE:.0f} % confidence interval "
        "of its mean over seeds"
    )
    intervals = [run for run in runs[1:] if look_up(run, f"{accuracy}.half_width") is not None]
    caption += f", corrected for {len(intervals)} runs (Dunnett)" * (len(intervals) > 1)
    if small in (each.title for each in shown):
        caption += (
            f"; seeds: how many would detect a difference of {SMALL_DIFFERENCE:g}, and this one, "
            f"with a power of {POWER:g}"
        )
    return Table(runs[1:], shown, caption)


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
    plotted = [plots.PlottedRun(run.settings, run.histories, run.title) for run in runs]
    data = dict.fromkeys(run.settings.data.title for run in runs)
    heading = f"{sum(run.num_runs for run in runs)} runs on {' and '.join(data)}"
    return plots.draw_comparison(plotted, heading, options)
