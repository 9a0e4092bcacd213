"""The results that the pages draw conclusions from, as small JSON files in docs/results.

A file has what a table or a picture needs of some trainings, so that it is made again without them.
Where a file is missing its runs are trained; an unfinished one is resumed.
"""

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from pydantic import BaseModel

from plateau_train.api.sweeps import table_path
from plateau_train.config import FigureOptions
from plateau_train.plots.style import RUN_LINESTYLES, Theme
from plateau_train.report.stats import critical_value, difference
from plateau_train.run.directory import RunDirectory, is_sweep, list_runs
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd

ROOT = Path(__file__).parents[1]
STORED = ROOT / "docs" / "results"
DIGITS = 5  # of what is stored; four are shown
ALL_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "scale")
SCORES = ("val_accuracy", "test_accuracy")
BASELINE = "constant"


class Replica(BaseModel):
    """One training: its settings that vary, its drops, and its metrics by epoch, from 0."""

    schedule: str
    mode: str
    learning_rate: float
    seed: int
    drop_epochs: list[int]
    metrics: dict[str, list[float]]

    @property
    def chosen_epoch(self) -> int:
        """The first epoch of the highest validation accuracy."""
        scores = self.metrics["val_accuracy"]
        return scores.index(max(scores))

    def chosen(self, metric: str) -> float:
        """The value of a metric in that epoch."""
        return self.metrics[metric][self.chosen_epoch]


class Evidence(BaseModel):
    """Some trainings, the command that made them, and where."""

    command: str
    machine: str
    replicas: list[Replica]


def obtain(runs_dir: Path, name: str, metrics: Sequence[str], *arguments: str) -> Evidence:
    """Return the stored trainings of this name, or train them with a command and store them."""
    path = STORED / f"{name}.json"
    if path.exists():
        return Evidence.model_validate_json(path.read_text(encoding="utf-8"))
    folder = train(runs_dir, name, *arguments)
    runs = [Run(RunDirectory(each)) for each in list_runs(folder)] if is_sweep(folder) else []
    evidence = collect(runs or [Run(RunDirectory(folder))], metrics, arguments)
    STORED.mkdir(exist_ok=True)
    path.write_text(evidence.model_dump_json() + "\n", encoding="utf-8")
    return evidence


def train(runs_dir: Path, name: str, *arguments: str) -> Path:
    """Return the finished run or sweep of this name, after training or resuming it if need be."""
    program = [sys.executable, "-m", "plateau_train"]
    begun = sorted(runs_dir.glob(f"*-{name}"))
    if not begun:
        command = [*arguments, "--name", name, "--runs-dir", str(runs_dir)]
        subprocess.run([*program, *command], cwd=ROOT, check=True)
        begun = sorted(runs_dir.glob(f"*-{name}"))
    folder = begun[-1]
    done = table_path(folder) if is_sweep(folder) else RunDirectory(folder).summary
    if not done.exists():
        subprocess.run([*program, "resume", str(folder)], cwd=ROOT, check=True)
    return folder


def collect(runs: Sequence[Run], metrics: Sequence[str], arguments: Sequence[str]) -> Evidence:
    """Return the replicas of runs with some of their metrics."""
    replicas = [
        Replica(
            schedule=run.settings.optimizer.schedule,
            mode=run.settings.plateau.mode,
            learning_rate=run.settings.optimizer.learning_rate,
            seed=history.seed,
            drop_epochs=[drop.epoch for drop in history.drops],
            metrics={
                name: [float(f"{getattr(each, name):.{DIGITS}g}") for each in history.records]
                for name in metrics
            },
        )
        for run in runs
        for history in run.histories
    ]
    return Evidence(
        command=" ".join(("plateau-train", *arguments)),
        machine=describe_machine(runs[0]),
        replicas=replicas,
    )


def describe_machine(run: Run) -> str:
    """Return the machine and the versions of a run."""
    environment = run.environment
    versions = ", ".join(
        f"{name} {environment.versions[name]}" for name in ("jax", "flax", "optax")
    )
    return (
        f"{environment.processor_cores} cores ({environment.processor}), threads: "
        f"{environment.threads}, with {versions}, Python {environment.python}"
    )


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return where one more value lies with a probability of 95 %, if they are normal."""
    half_width = critical_value(1, len(values) - 1) * stdev(values) * (1 + 1 / len(values)) ** 0.5
    return fmean(values) - half_width, fmean(values) + half_width


class Published(NamedTuple):
    """One published run: its mean train accuracy by epoch, and the first epoch at each scale."""

    train_accuracy: Mapping[int, float]
    first_epochs: Sequence[int]


def spread_table(evidence: Mapping[str, Evidence], published: Mapping[str, Published]) -> str:
    """Return a table of many seeds of the published experiment beside its single runs."""
    lines = [
        "| mode | | final mean train accuracy | final test accuracy | drops "
        "| first epoch at a lower scale |",
        "|---|---|---|---|---|---|",
    ]
    for mode, trained in evidence.items():
        # A window that closes inside an epoch acts in that epoch, an evaluation in the next.
        later = 0 if mode.startswith("train") else 1
        columns = [
            [each.metrics["train_accuracy"][-1] for each in trained.replicas],
            [each.metrics["test_accuracy"][-1] for each in trained.replicas],
            [len(each.drop_epochs) for each in trained.replicas],
            [each.drop_epochs[0] + later for each in trained.replicas if each.drop_epochs],
        ]
        forms, ranges = (".4f", ".4f", ".1f", ".1f"), (".4f", ".4f", "d", "d")
        first_epochs = published[mode].first_epochs
        accuracy = [*published[mode].train_accuracy.values()][-1]
        single = (accuracy, None, len(first_epochs), first_epochs[0])
        seeds = f"{len(trained.replicas)} seeds"
        rows = {
            f"{seeds}, mean and sd": [
                f"{MeanStd.of(column):{form}}" for column, form in zip(columns, forms, strict=True)
            ],
            f"{seeds}, range": [
                f"{min(column):{form}} to {max(column):{form}}"
                for column, form in zip(columns, ranges, strict=True)
            ],
            "95 % interval of one more run": [
                "{:{form}} to {:{form}}".format(*prediction_interval(column), form=form)
                for column, form in zip(columns, forms, strict=True)
            ],
            "published, one run on a TPU": [
                "not published" if value is None else f"{value:{form}}, {placed(value, column)}"
                for value, form, column in zip(single, ranges, columns, strict=True)
            ],
        }
        lines += [f"| {mode} | {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def placed(value: float, others: Sequence[float]) -> str:
    """Return whether a value lies where one more of the others is expected."""
    low, high = prediction_interval(others)
    return "inside" if low <= value <= high else "below" if value < low else "above"


def draw_spread(evidence: Mapping[str, Evidence], published: Mapping[str, Published]) -> Figure:
    """Draw all seeds of each mode, their mean, and the published epochs of the train accuracy."""
    theme = Theme.of(FigureOptions(), len(evidence))
    with theme.applied():
        figure = theme.new_figure(12, 5)
        panels = theme.add_panels(figure, 1, len(evidence), sharey=True)
        for panel, (mode, trained) in zip(panels, evidence.items(), strict=True):
            for metric, split in (("train_accuracy", "train"), ("test_accuracy", "test")):
                rows = np.array([each.metrics[metric][1:] for each in trained.replicas])
                epochs, color = np.arange(1, rows.shape[1] + 1), theme.split_colors[split]
                panel.plot(epochs, rows.T, color=color, linewidth=0.6, alpha=0.4)
                name = f"{split}, {len(rows)} seeds and their mean"
                panel.plot(epochs, rows.mean(axis=0), color=color, linewidth=2.5, label=name)
            points = published[mode].train_accuracy
            look = {"color": theme.ink, "zorder": 5, "markersize": 6}
            panel.plot(
                list(points), list(points.values()), "o", label="train, published run", **look
            )
            panel.set_title(f"--mode {mode}", fontsize=theme.panel_title)
            panel.set_xlabel("epoch", fontsize=theme.label)
            panel.tick_params(labelsize=theme.tick)
            panel.grid(visible=True, alpha=0.3)
        panels[0].set_ylabel("accuracy", fontsize=theme.label)
        panels[0].legend(loc="lower right", fontsize=theme.tick)
    return figure


def best_rates(evidence: Mapping[str, Evidence]) -> dict[str, float]:
    """Return the rate of each schedule with the highest mean validation accuracy."""
    return {
        name: max(_by_rate(trained), key=lambda rate: _mean_score(trained, rate, "val_accuracy"))
        for name, trained in evidence.items()
    }


def at_rate(trained: Evidence, rate: float, seeds: Collection[int]) -> Evidence:
    """Return the replicas at a rate that have one of some seeds."""
    replicas = [each for each in _by_rate(trained)[rate] if each.seed in seeds]
    return trained.model_copy(update={"replicas": replicas})


def _by_rate(trained: Evidence) -> dict[float, list[Replica]]:
    rates = sorted({each.learning_rate for each in trained.replicas})
    return {
        rate: [each for each in trained.replicas if each.learning_rate == rate] for rate in rates
    }


def _mean_score(trained: Evidence, rate: float, metric: str) -> float:
    return fmean(each.chosen(metric) for each in _by_rate(trained)[rate])


def tuned_table(evidence: Mapping[str, Evidence]) -> str:
    """Return a table of schedules, each at its own best rate."""
    lines = [
        "| what sets the scale | its best rate | validation accuracy | test accuracy "
        "| difference from the tuned constant (95 % interval) | chosen epoch | drops per seed |",
        "|---|---|---|---|---|---|---|",
    ]
    rates = best_rates(evidence)
    best = {name: _by_rate(trained)[rates[name]] for name, trained in evidence.items()}
    scores = {
        name: {each.seed: each.chosen("test_accuracy") for each in replicas}
        for name, replicas in best.items()
    }
    for name, replicas in best.items():
        compared = difference(scores[name], scores[BASELINE], num_runs=len(best) - 1)
        drops = MeanStd.of([len(each.drop_epochs) for each in replicas])
        cells = (
            name,
            f"{rates[name]:g}",
            f"{MeanStd.of([each.chosen('val_accuracy') for each in replicas]):.4f}",
            f"{MeanStd.of(list(scores[name].values())):.4f}",
            "" if name == BASELINE else str(compared),
            f"{MeanStd.of([each.chosen_epoch for each in replicas]):.0f}",
            f"{drops:.1f}" if replicas[0].schedule == "plateau" else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_tuned(
    evidence: Mapping[str, Evidence], by_budget: Mapping[int, Mapping[str, Evidence]]
) -> Figure:
    """Draw the test accuracy of each schedule over the rate, and over the number of epochs."""
    theme = Theme.of(FigureOptions(), 2)
    by_rate = {
        name: {rate: _accuracy(replicas) for rate, replicas in _by_rate(trained).items()}
        for name, trained in evidence.items()
    }
    by_epochs = {
        name: {epochs: _accuracy(trained[name].replicas) for epochs, trained in by_budget.items()}
        for name in evidence
    }
    with theme.applied():
        figure = theme.new_figure(13, 5.5)
        left, right = theme.add_panels(figure, 1, 2, sharey=True)
        for number, (name, rows) in enumerate(by_rate.items()):
            shift = 1.03 ** (number - len(evidence) / 2)  # or the bars would cover each other
            look = {
                "color": theme.run_colors[number % len(theme.run_colors)],
                "linestyle": RUN_LINESTYLES[number // len(theme.run_colors)],
                "label": name, "marker": "o", "capsize": 3,
            }  # fmt: skip
            for panel, points in ((left, rows), (right, by_epochs[name])):
                panel.errorbar(
                    [place * shift for place in points],
                    [each.mean for each in points.values()],
                    [each.sd for each in points.values()],
                    **look,
                )
        for panel, places, what in (
            (left, list(by_rate[BASELINE]), "base learning rate"),
            (right, list(by_budget), "epochs, at each schedule's best rate"),
        ):
            panel.set_xscale("log")
            panel.set_xticks(places, [f"{place:g}" for place in places])
            panel.minorticks_off()
            panel.set_xlabel(what, fontsize=theme.label)
            panel.tick_params(labelsize=theme.tick)
            panel.grid(visible=True, alpha=0.3)
        left.set_ylabel("test accuracy, mean and sd of the seeds", fontsize=theme.label)
        handles, names = left.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=8, fontsize=theme.tick)
    return figure


def _accuracy(replicas: Sequence[Replica]) -> MeanStd:
    return MeanStd.of([each.chosen("test_accuracy") for each in replicas])


def budget_table(by_budget: Mapping[int, Mapping[str, Evidence]]) -> str:
    """Return a table of the test accuracy after trainings of several lengths."""
    lines = [
        f"| what sets the scale | {' | '.join(f'{each} epochs' for each in by_budget)} |",
        "|---|" + "---|" * len(by_budget),
    ]
    for name in next(iter(by_budget.values())):
        cells = [f"{_accuracy(trained[name].replicas):.4f}" for trained in by_budget.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
