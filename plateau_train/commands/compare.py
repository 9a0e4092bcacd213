"""Compare runs: their results, the differences with confidence intervals, and their settings."""

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from plateau_train import plots
from plateau_train.config import SETTINGS, FigureOptions, Settings
from plateau_train.errors import PROGRAM, ConfigError
from plateau_train.report import console
from plateau_train.report.console import MISSING, Column, Table, look_up
from plateau_train.report.stats import CONFIDENCE, Difference, difference
from plateau_train.run.directory import is_sweep, list_runs
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd
from plateau_train.run.results import ROUNDING, Results

log = logging.getLogger("plateau_train")


class ComparedRun(NamedTuple):
    """What a run achieved, and its differences from the first one."""

    name: str  # unique among the runs
    settings: Settings
    results: Results
    seconds: float | None
    level_epochs: Sequence[int | None]  # of each seed, the first that reaches the level
    differing: Mapping[str, str]  # flags and values of the settings that differ between the runs
    accuracy_difference: Difference | None  # after the last epoch; None for the first run
    loss_difference: Difference | None

    @property
    def num_drops(self) -> MeanStd | None:
        return self.results.drops_of(self.settings)


class Comparison(NamedTuple):
    """What runs achieved, and the test accuracy whose first epoch is reported."""

    runs: Sequence[ComparedRun]
    level: float
    is_explicit_level: bool
    picture: Path | None


def compare(
    paths: Sequence[Path],
    *,
    level: float | None = None,
    picture: Path | None = None,
    figure: FigureOptions | None = None,
) -> Comparison:
    """Compare runs with the first one, and draw all of them into ``picture`` if given.

    ``level`` is a test accuracy: the first epoch that reaches it is a result. The default is the
    highest that every replica reaches. Raises ``ConfigError`` for fewer than two different runs and
    for a level that is not an accuracy, ``RunError`` for a folder that is not a run or is damaged.
    """
    if picture is not None:
        plots.check_format(picture)
    if level is not None and not 0 < level <= 1:
        raise ConfigError(
            f"--level must be an accuracy above 0 and at most 1, got {level:g}",
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
    compared = _compare(runs, level or reached)
    if picture is not None:
        _draw(runs, picture, figure)
    return Comparison(compared, level or reached, level is not None, picture)


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
        differences = (
            None if run is baseline else difference(_finals(run, metric), _finals(baseline, metric))
            for metric in ("test_accuracy", "test_loss")
        )
        level_epochs = [
            next((e.epoch for e in history.records if e.test_accuracy > level - ROUNDING), None)
            for history in run.completed
        ]
        facts = run.settings, run.results, run.seconds, level_epochs, differing
        compared.append(ComparedRun(name, *facts, *differences))
    return compared


def _finals(run: Run, metric: str) -> dict[int, float]:
    """Return a metric of the last epoch for each seed."""
    return {history.seed: getattr(history.records[-1], metric) for history in run.completed}


def _draw(runs: Mapping[str, Run], picture: Path, figure: FigureOptions | None) -> None:
    """Draw the panels with all runs."""
    plotted = [plots.PlottedRun(run.settings, run.completed, name) for name, run in runs.items()]
    data = dict.fromkeys(run.settings.data.title for run in runs.values())
    heading = f"{len(runs)} runs on {' and '.join(data)}"
    plots.save(picture, plots.draw_comparison(plotted, heading, figure))


def print_comparison(comparison: Comparison) -> None:
    """Print a table of results, one of differences, and one of settings."""
    runs, level, is_explicit_level, picture = comparison
    name = Column("name", "run", is_number=False)
    results = [
        name,
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
    results = [each for each in results if any(each.text_of(run) != MISSING for run in runs)]
    caption = f"test accuracy: best, final, and the first epoch that reaches {level:.4g}"
    caption += "" if is_explicit_level else ", which every seed reaches"
    if any(run.results.chosen_by_val for run in runs):
        caption += "; by val: at the epoch that is best on held-out images"
    log.info(caption)
    console.print_table(Table(runs, results))
    differences = [
        name,
        Column("accuracy_difference", "final test accuracy"),
        Column("loss_difference", "final test loss", omit=1),
        Column("accuracy_difference.method", "interval", is_number=False),
    ]
    caption = (
        f"difference from {runs[0].name}, and the {100 * CONFIDENCE:.0f} % confidence interval "
        "of its mean over seeds"
    )
    console.print_table(Table(runs[1:], differences, caption))
    _print_settings(runs, name)
    if picture is not None:
        console.print_rows({"plot": str(picture)})


def _print_settings(runs: Sequence[ComparedRun], name: Column) -> None:
    """Print the settings that differ, a column each, or as a command line if that is too wide."""
    flags = runs[0].differing
    if not flags:
        log.info("all settings that affect results are the same")
        return
    columns = [name, *(Column(f"differing.{flag}", flag, is_number=False) for flag in flags)]
    table = Table(runs, columns, "settings that differ")
    if not console.fits_terminal(table):
        line = Column("differing", "settings", _command_line, is_number=False)
        table = table._replace(columns=[name, line])
    console.print_table(table)


def _command_line(settings: Mapping[str, str]) -> str:
    return "  ".join(f"{flag} {value}" for flag, value in settings.items())


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
