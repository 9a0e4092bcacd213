"""Runs beside each other: what each reached, and what the difference is worth."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter

from plateau_train.config import SETTINGS, Setting, Settings
from plateau_train.errors import ConfigError
from plateau_train.report.console import Column, Report, printable
from plateau_train.report.stats import CONFIDENCE, difference
from plateau_train.run.directory import RunDirectory
from plateau_train.run.history import History, completed, read_histories
from plateau_train.run.records import EpochRecord, MeanStd, Timing, best_record, read_records

TIMINGS = TypeAdapter(Timing)

# Two accuracies that differ by less are shares of the same number of images.
ROUNDING = 1e-6

# Settings of which no result depends on, but for the last bits.
CIRCUMSTANCES = {
    *("data_dir", "cache_dir", "name", "runs_dir", "quiet", "threads", "devices", "seed"),
    *(knob.key for knob in SETTINGS if knob.table == "cluster"),
}

# What runs should have in common to be compared, in the words for when they have not.
SHARED: Mapping[str, Callable[[Settings], object]] = {
    "on different data sets": lambda settings: settings.data.dataset,
    "scored on different test images": lambda settings: settings.data.test_examples or "all",
    "of different lengths in epochs": lambda settings: settings.run.epochs,
}

NONE = "-"

BY_VAL = "by val"
WORDS = ("run", "rule", "in epochs")  # the others are numbers

# Columns that a narrow terminal goes without, the first one first.
DROP_ORDER = ("in epochs", "seconds", "rule", "seeds", "drops", "at")


class Compared(NamedTuple):
    """A run, a short name of it that no other one has, and what is known of it."""

    name: str
    run: RunDirectory
    settings: Settings
    histories: Sequence[History]  # without those that ended before the others
    num_early: int  # how many did
    seconds: float | None

    @property
    def last_epoch(self) -> int:
        return self.histories[0].records[-1].epoch

    def finals(self, metric: str) -> dict[int, float]:
        """Return a metric of the last epoch for each seed."""
        return {history.seed: getattr(history.records[-1], metric) for history in self.histories}


def compare(
    paths: Sequence[Path], picture: Path | None, level: float | None, report: Report
) -> None:
    """Print a row a run, the differences from the first one, and which settings differ.

    ``level`` is the test accuracy whose first epoch is told; without it, the highest one that
    every training reaches. ``picture`` is where the five panels are drawn with all runs. Raises
    ``ConfigError`` for fewer than two different runs and for a level that is no accuracy,
    ``RunError`` for what is no run or damaged.
    """
    if picture is not None:
        from plateau_train.plots import panels

        panels.picture_format(picture)  # now, not after all the work
    if level is not None and not 0 < level <= 1:
        raise ConfigError(
            f"--level must be an accuracy above 0 and at most 1, got {level:g}",
            hint="write 87 % as 0.87",
        )
    runs = read_runs(paths)
    if warnings := list(_warnings(runs)):
        report.warn(*warnings)
    _show_results(runs, level, report)
    _show_differences(runs, report)
    _show_settings(runs, report)
    if picture is not None:
        _draw(runs, picture)
        report.rows({"plot": str(picture)})


def read_runs(paths: Sequence[Path]) -> list[Compared]:
    """Read runs, and find a short name for each."""
    if len(paths) < 2:
        raise ConfigError(
            "compare needs two runs or more",
            hint="plateau-train compare runs/ONE runs/TWO; plateau-train runs lists them",
        )
    found = [RunDirectory.open(path) for path in paths]
    places = [run.path.resolve() for run in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(
                f"{found[places.index(place)]} and {paths[number]} are the same run",
                hint="give each run once",
            )
    runs = []
    for run, name in zip(found, _short_names(places), strict=True):
        histories = read_histories(run)
        whole = completed(histories)
        early = len(histories) - len(whole)
        runs.append(
            Compared(name, run, run.settings().settings, whole, early, _seconds(run.timings))
        )
    return runs


def _short_names(places: Sequence[Path]) -> list[str]:
    """Name each run without the time that it began, or with it, or by its whole path."""
    levels = [
        [re.sub(r"^\d{8}-\d{6}-(?=.)", "", place.name) for place in places],
        [place.name for place in places],
        [f"{place}" for place in places],
    ]
    return [
        printable(
            next(name for name, level in zip(names, levels, strict=True) if level.count(name) == 1)
        )
        for names in zip(*levels, strict=True)
    ]


def _seconds(path: Path) -> float | None:
    """Add up what the epochs of a run took; None where nobody has written it down."""
    timings = read_records(path, TIMINGS, torn=True) if path.exists() else []
    if not timings:
        return None
    return sum(timing.train_seconds + timing.evaluate_seconds for timing in timings)


def _warnings(runs: Sequence[Compared]) -> Iterator[str]:
    """Say what makes runs hard to compare."""
    for what, value in SHARED.items():
        values = [value(run.settings) for run in runs]
        if len(set(values)) > 1:
            of_each = ", ".join(
                f"{value} ({run.name})" for run, value in zip(runs, values, strict=True)
            )
            yield f"The runs are {what}: {of_each}."
    for run in runs:
        if run.last_epoch < run.settings.run.epochs:
            yield (
                f"{run.name} has come to epoch {run.last_epoch} of {run.settings.run.epochs}: "
                "its final values are of that epoch."
            )
        if run.num_early:
            yield (
                f"{run.name}: {run.num_early} of {run.num_early + len(run.histories)} seeds "
                "ended before the others and are left out."
            )


class Figures(NamedTuple):
    """What one training reached; epochs count from 1, and 0 is the untrained network."""

    best: EpochRecord  # of the highest test accuracy
    chosen: EpochRecord | None  # of the highest accuracy on held-out images, if there are any
    final: EpochRecord
    reached: int | None  # first epoch at the level or above
    drop_epochs: Sequence[int]

    @classmethod
    def of(cls, history: History, level: float) -> "Figures":
        records = history.records
        has_val = records[0].val_accuracy is not None
        reached = (record.epoch for record in records if record.test_accuracy > level - ROUNDING)
        return cls(
            best=_best_on_test(records),
            chosen=best_record(records) if has_val else None,
            final=records[-1],
            reached=next(reached, None),
            drop_epochs=[drop.epoch for drop in history.drops],
        )


def _best_on_test(records: Sequence[EpochRecord]) -> EpochRecord:
    return max(records, key=lambda record: record.test_accuracy)


def _show_results(runs: Sequence[Compared], level: float | None, report: Report) -> None:
    """Print what each run reached."""
    told = ""
    if level is None:
        bests = [_best_on_test(each.records) for run in runs for each in run.histories]
        level, told = min(best.test_accuracy for best in bests), ", which every training reaches"
    rows = [_row(run, level) for run in runs]
    titles = [title for title in rows[0] if any(row[title] != NONE for row in rows)]
    caption = f"test accuracy: the best, the final one, the first epoch at {level:.4g}{told}"
    if BY_VAL in titles:
        caption += f"; {BY_VAL}: at the epoch that is best on held-out images"
    report.say(caption)
    report.table(
        [
            Column(title, [row[title] for row in rows], is_number=title not in WORDS)
            for title in titles
        ],
        drop_order=DROP_ORDER,
    )


def _row(run: Compared, level: float) -> dict[str, str]:
    """Write a run as cells under their titles: mean and standard deviation over its seeds."""
    figures = [Figures.of(history, level) for history in run.histories]
    chosen = [each.chosen.test_accuracy for each in figures if each.chosen]
    reached = [each.reached for each in figures if each.reached is not None]
    few = f" ({len(reached)} of {len(figures)})" if 0 < len(reached) < len(figures) else ""
    num_drops = [len(each.drop_epochs) for each in figures]
    follows = run.settings.optimizer.schedule == "plateau"
    return {
        "run": run.name,
        "rule": run.settings.schedule_name,
        "seeds": f"{len(figures)}",
        "best": _spread([each.best.test_accuracy for each in figures], ".4f"),
        "at": _epochs([each.best.epoch for each in figures]),
        BY_VAL: _spread(chosen, ".4f"),
        "final": _spread([each.final.test_accuracy for each in figures], ".4f"),
        f"to {level:.4g}": _epochs(reached) + few,
        "drops": _epochs(num_drops) if follows else NONE,
        "in epochs": _drop_epochs([each.drop_epochs for each in figures]),
        "seconds": NONE if run.seconds is None else f"{run.seconds:,.0f}",
    }


def _spread(values: Sequence[float], form: str) -> str:
    return f"{MeanStd.of(values):{form}}" if values else NONE


def _epochs(counts: Sequence[int]) -> str:
    """Write whole numbers, of which the mean of several has a decimal."""
    return _spread(counts, ".1f" if len(counts) > 1 else ".0f")


def _drop_epochs(of_each: Sequence[Sequence[int]]) -> str:
    """List the epochs of one training's drops; of several say when the first and the last fell."""
    if len(of_each) == 1:
        return ", ".join(map(str, of_each[0])) or NONE
    falling = [epochs for epochs in of_each if epochs]
    if not falling:
        return NONE
    first, last = ([epochs[place] for epochs in falling] for place in (0, -1))
    return f"first {_epochs(first)}, last {_epochs(last)}"


def _show_differences(runs: Sequence[Compared], report: Report) -> None:
    """Print how each run differs from the first one in its last epoch."""
    first, *others = runs
    accuracies, losses = (
        [difference(run.finals(metric), first.finals(metric)) for run in others]
        for metric in ("test_accuracy", "test_loss")
    )
    report.table(
        [
            Column("run", [run.name for run in others], is_number=False),
            Column("final test accuracy", list(map(str, accuracies))),
            Column("final test loss", list(map(str, losses))),
            Column("interval", [found.how for found in accuracies], is_number=False),
        ],
        caption=f"difference from {first.name}, and the {100 * CONFIDENCE:.0f} % confidence "
        "interval of its mean over seeds",
        drop_order=("final test loss",),
    )


def _show_settings(runs: Sequence[Compared], report: Report) -> None:
    """Print the settings that are not the same in all runs."""
    cells = {
        knob.flag: [_setting(run.settings, knob) for run in runs]
        for knob in SETTINGS
        if knob.key not in CIRCUMSTANCES
    }
    differing = {flag: values for flag, values in cells.items() if len(set(values)) > 1}
    if not differing:
        report.say("no setting differs that a result depends on")
        return
    names = Column("run", [run.name for run in runs], is_number=False)
    columns = [names, *(Column(flag, cells, is_number=False) for flag, cells in differing.items())]
    if not report.fits(columns):  # as they are typed, which can be folded
        flags = [
            "  ".join(f"{flag} {cell}" for flag, cell in zip(differing, row, strict=True))
            for row in zip(*differing.values(), strict=True)
        ]
        columns = [names, Column("settings", flags, is_number=False)]
    report.table(columns, caption="settings that differ")


def _setting(settings: Settings, knob: Setting) -> str:
    """Write a value as it is typed."""
    value = getattr(getattr(settings, knob.table), knob.key)
    return knob.text(value)


def _draw(runs: Sequence[Compared], picture: Path) -> None:
    """Draw the five panels with all runs."""
    from plateau_train.plots import panels
    from plateau_train.plots.scale import Drawn

    drawn = []
    for run in runs:
        count = len(run.histories)
        label = f"{run.name} ({count} seeds)" if count > 1 else run.name
        drawn.append(Drawn(run.settings, run.histories, label))
    names = dict.fromkeys(panels.data_title(run.settings.data) for run in runs)
    are_several = any(len(run.histories) > 1 for run in runs)
    bands = ": means and one standard deviation of the seeds" if are_several else ""
    heading = f"{len(runs)} runs on {' and '.join(names)}{bands}"
    panels.save_figure(panels.draw_together(drawn, heading), picture)
