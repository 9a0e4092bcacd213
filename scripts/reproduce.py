"""Make every figure and table of README.md and docs again, except those of scripts/benchmark.py.

    .venv/bin/python scripts/reproduce.py            # all of it; minutes per run
    .venv/bin/python scripts/reproduce.py --tables   # only what needs no training
    .venv/bin/python scripts/reproduce.py --only networks   # one of the sections

Finished runs in --runs-dir are used again, so the script can be stopped and started.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from evidence import (
    ALL_METRICS,
    SCORES,
    Evidence,
    Published,
    at_rate,
    best_rates,
    budget_table,
    describe_machine,
    draw_spread,
    draw_tuned,
    obtain,
    spread_table,
    train,
    tuned_table,
)
from matplotlib.figure import Figure
from numpy.typing import NDArray

import plateau_train as pt
from plateau_train import config, data
from plateau_train.config import FIGURE_OPTIONS, SETTINGS, Setting
from plateau_train.config.toml import to_toml
from plateau_train.data import garments
from plateau_train.report.stats import difference
from plateau_train.run.directory import RunDirectory
from plateau_train.run.reader import Run
from plateau_train.run.records import MeanStd, best_record

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
# The trainings that show whether the rule helps. They differ in what sets the scale. A tenth of the
# training images is held out, so that an epoch can be chosen on them.
SCHEDULES = {
    "constant": ("--schedule", "constant"),
    "train-loss": ("--mode", "train-loss"),
    "test-loss": ("--mode", "test-loss"),
    "val-loss": ("--mode", "val-loss"),
    "cosine": ("--schedule", "cosine"),
}
SAME = ("--dataset", "fashion_mnist", "--val-fraction", "0.1")
# More of them on a smaller network: at several rates, and at the best one for fewer epochs.
TUNED = SCHEDULES | {name: ("--schedule", name) for name in ("linear", "rex", "step")}
SMALLER = (*SAME, "--hidden-sizes", "256,256")
RATES = ("--learning-rate", "0.0003,0.001,0.003,0.01")
LONGEST, BUDGETS = 50, (5, 10, 25)  # epochs
NETWORKS = {"mlp": "--model mlp", "cnn": "--model cnn"}
NETWORK_FLAGS = ("--dataset", "fashion_mnist", "--epochs", "10", "--seed", "0-2")
# Of the published notebook, one run each on a TPU.
PUBLISHED = {
    "train-loss": Published(
        first_epochs=(11, 28, 34, 44, 47),
        train_accuracy={
            1: 0.7951, 5: 0.8677, 10: 0.8745, 11: 0.8849, 20: 0.8976, 27: 0.9016, 28: 0.9078,
            34: 0.9158, 40: 0.9203, 44: 0.9235, 50: 0.9263,
        },
    ),
    "test-loss": Published(
        first_epochs=(16, 21, 28, 33, 38, 43, 48),
        train_accuracy={
            1: 0.8026, 5: 0.8701, 10: 0.8827, 16: 0.8878, 17: 0.8979, 21: 0.9032, 28: 0.9141,
            33: 0.9199, 38: 0.9250, 43: 0.9271, 50: 0.9286,
        },
    ),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs-dir", type=Path, default=ROOT / "runs" / "reproduce")
    parser.add_argument("--tables", action="store_true", help="write only what needs no training")
    parser.add_argument("--only", choices=SECTIONS, help="write only this section, and the tables")
    arguments = parser.parse_args()
    rewrite(DOCS / "settings.md", "settings", settings_table())
    rewrite(DOCS / "figures.md", "figures", figures_table())
    (ROOT / "configs" / "default.toml").write_text(default_toml(), encoding="utf-8")
    sections = [] if arguments.tables else [arguments.only] if arguments.only else [*SECTIONS]
    for section in sections:
        SECTIONS[section](arguments.runs_dir)


def write_references(runs_dir: Path) -> None:
    """Train the published experiment in both modes: one seed for its picture, and ten."""
    for mode in PUBLISHED:
        pt.load(reference(runs_dir, mode).path).plot(path=DOCS / f"{mode}.png")
    evidence = {
        mode: obtain(
            runs_dir, f"ten-seeds-{mode}", ALL_METRICS,
            "--config", settings_of(mode), "--dataset", "fashion_mnist", "--seed", "0-9",
        )
        for mode in PUBLISHED
    }  # fmt: skip
    first = evidence["train-loss"]
    about = f"The first rows: `{first.command}`. Made by `scripts/reproduce.py` on {first.machine}."
    rewrite(README, "results", f"{spread_table(evidence, PUBLISHED)}\n\n{about}")
    draw_spread(evidence, PUBLISHED).savefig(DOCS / "ten-seeds.png")


def write_garments(runs_dir: Path) -> None:
    """Train on the built-in set."""
    contact_sheet().savefig(DOCS / "garments.png")
    drawn = reference(runs_dir, "train-loss", "--dataset", "garments")
    rewrite(DOCS / "data.md", "garments", garments_result(drawn))


def write_helps(runs_dir: Path) -> None:
    """Train with each schedule."""
    helps = [
        trained(runs_dir, f"helps-{name}", *flags, *SAME, "--seed", "0-3")
        for name, flags in SCHEDULES.items()
    ]
    rewrite(DOCS / "results.md", "helps", helps_table(helps))
    pt.compare(*(run.path for run in helps[:2])).plot(path=DOCS / "helps.png")


def write_tuned(runs_dir: Path) -> None:
    """Train with more schedules at several rates, and at the best of them for fewer epochs."""
    evidence = tuned(runs_dir)
    example = evidence["constant"]
    about = (
        f"Means and standard deviations of 4 seeds after {LONGEST} epochs. The best rate has the "
        "highest mean validation accuracy. Rate and epoch are chosen on held-out images. The "
        "differences are paired by seed, and their intervals corrected for their number (Dunnett). "
        f"The first row: `{example.command}`. Made by `scripts/reproduce.py` on {example.machine}."
    )
    rewrite(DOCS / "results.md", "tuned", f"{tuned_table(evidence)}\n\n{about}")
    by_budget = budgets(runs_dir, evidence)
    example = by_budget[BUDGETS[0]]["constant"]
    about = (
        "Means and standard deviations of 2 seeds, each schedule at its best rate of the table "
        f"above. The first cell: `{example.command}`. Made by `scripts/reproduce.py` on "
        f"{example.machine}."
    )
    rewrite(DOCS / "results.md", "budgets", f"{budget_table(by_budget)}\n\n{about}")
    draw_tuned(evidence, by_budget).savefig(DOCS / "tuned.png")


def tuned(runs_dir: Path) -> dict[str, Evidence]:
    """Return the trainings of each schedule at several rates."""
    more = (*SMALLER, *RATES, "--seed", "0-3", "--epochs", str(LONGEST))
    return {
        name: obtain(runs_dir, f"tuned-{name}", SCORES, "sweep", *flags, *more)
        for name, flags in TUNED.items()
    }


def budgets(runs_dir: Path, longest: Mapping[str, Evidence]) -> dict[int, dict[str, Evidence]]:
    """Return the trainings of each schedule, at its best rate, by their number of epochs."""
    rates = best_rates(longest)
    shorter = {
        epochs: {
            name: obtain(
                runs_dir, f"budget-{epochs}-{name}", SCORES, *flags, *SMALLER,
                "--learning-rate", f"{rates[name]:g}", "--seed", "0,1", "--epochs", str(epochs),
            )
            for name, flags in TUNED.items()
        }
        for epochs in BUDGETS
    }  # fmt: skip
    seeds = {each.seed for each in shorter[BUDGETS[0]]["constant"].replicas}
    own = {name: at_rate(trained, rates[name], seeds) for name, trained in longest.items()}
    return shorter | {LONGEST: own}


def write_networks(runs_dir: Path) -> None:
    """Train the built-in networks."""
    runs = {
        flags: trained(runs_dir, f"networks-{name}", *flags.split(), *NETWORK_FLAGS)
        for name, flags in NETWORKS.items()
    }
    rewrite(README, "networks", networks_table(runs))


SECTIONS = {
    "references": write_references,
    "garments": write_garments,
    "helps": write_helps,
    "tuned": write_tuned,
    "networks": write_networks,
}


def reference(runs_dir: Path, mode: str, *more: str) -> RunDirectory:
    """Return a run of the published experiment with seed 0."""
    name = "-".join(["reproduce", mode, *more[1::2]])
    return trained(runs_dir, name, "--config", settings_of(mode), "--seed", "0", *more)


def settings_of(mode: str) -> str:
    """Return the file with the settings of the published experiment."""
    return f"configs/{mode.replace('-', '_')}.toml"


def trained(runs_dir: Path, name: str, *arguments: str) -> RunDirectory:
    """Return the finished run of this name, after training or resuming it if need be."""
    return RunDirectory.open(train(runs_dir, name, *arguments))


def helps_table(runs: Sequence[RunDirectory]) -> str:
    """Return a table of the schedules: means and standard deviations over their seeds."""
    lines = [
        "| what sets the scale | final test accuracy | difference from constant (95 % interval) "
        "| final test loss | test accuracy at the epoch chosen on held-out images "
        "| highest test accuracy of all epochs | optimistic by | drops per seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    compared = {name: Run(run) for name, run in zip(SCHEDULES, runs, strict=True)}
    accuracies = {
        name: {each.seed: each.records[-1].test_accuracy for each in run.completed}
        for name, run in compared.items()
    }
    baseline, *_ = SCHEDULES
    for name, run in compared.items():
        results = run.results
        optimism = [
            max(record.test_accuracy for record in each.records)
            - best_record(each.records).test_accuracy
            for each in run.completed
        ]
        cells = (
            name,
            f"{results.final['test'].accuracy:.4f}",
            "" if name == baseline else str(difference(accuracies[name], accuracies[baseline])),
            f"{results.final['test'].loss:.4f}",
            f"{results.chosen_by_val:.4f}",
            f"{results.highest_test_accuracy:.4f}",
            f"{MeanStd.of(optimism):.4f}",
            f"{results.num_drops:.1f}" if any(results.drop_epochs) else "",
        )
        lines.append(f"| {' | '.join(cells)} |")
    gain = difference(accuracies["test-loss"], accuracies["val-loss"])
    lines += [
        "",
        f"The final test accuracy of test-loss minus that of val-loss is {gain} (95 % interval).",
        "",
        f"Means and standard deviations of {len(accuracies[baseline])} seeds after "
        f"{compared[baseline].results.epoch} epochs on Fashion-MNIST. A tenth of the training "
        "images is held out. The differences are paired by seed, and each interval is for one "
        f"difference alone. {made_by(runs[0])}",
    ]
    return "\n".join(lines)


def networks_table(runs: Mapping[str, RunDirectory]) -> str:
    """Return a table of networks: means and standard deviations over their seeds."""
    lines = [
        "| network | parameters | test accuracy after 10 epochs | highest of all epochs |",
        "|---|---|---|---|",
    ]
    for flags, directory in runs.items():
        run = Run(directory)
        results = run.results
        params = pt.load(directory.path).params(seed=run.settings.run.seeds[0])
        num_params = sum(leaf.size for leaf in jax.tree.leaves(params))
        cells = (
            f"`{flags}`",
            f"{num_params:,}",
            f"{results.final['test'].accuracy:.4f}",
            f"{results.highest_test_accuracy:.4f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    first = next(iter(runs.values()))
    lines += ["", f"Means and standard deviations of 3 seeds on Fashion-MNIST. {made_by(first)}"]
    return "\n".join(lines)


def made_by(run: RunDirectory) -> str:
    """Return a sentence with the script, the machine and the versions of a run."""
    return f"Made by `scripts/reproduce.py` on {describe_machine(Run(run))}."


def garments_result(run: RunDirectory) -> str:
    """Return a sentence with the results of the default settings on the built-in set."""
    (history,) = Run(run).histories
    final = history.records[-1]
    epochs = ", ".join(str(drop.epoch) for drop in history.drops)
    return (
        f"The default settings (train-loss, seed 0) reach a test accuracy of "
        f"{final.test_accuracy:.3f} and a mean train accuracy of {final.train_accuracy:.3f} after "
        f"{final.epoch} epochs; the rate drops in epochs {epochs}."
    )


def settings_table() -> str:
    """Return a table of all flags."""
    switches = {
        each.key: f"`--no-{each.flag[2:]}` undoes it" for each in SETTINGS if each.is_switch
    }
    return table_of(SETTINGS, switches)


def figures_table() -> str:
    """Return a table of the options of figures."""
    return table_of(FIGURE_OPTIONS, {each.key: "" for each in FIGURE_OPTIONS if each.is_switch})


def table_of(settings: Sequence[Setting], values_of_switches: Mapping[str, str]) -> str:
    lines = ["| flag | values | default | meaning |", "|---|---|---|---|"]
    for setting in settings:
        values = values_of_switches.get(setting.key, "") if setting.is_switch else setting.expected
        cells = (f"`{setting.flag}`", values, setting.default, setting.help)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def default_toml() -> str:
    """Return a TOML file of all settings with their defaults and meanings."""
    head = "# Every setting with its default. Generated by scripts/reproduce.py --tables.\n\n"
    return head + to_toml(*config.resolve({}), describe=True)


def rewrite(page: Path, section: str, text: str) -> None:
    """Replace the text of a page between the two marks of a section."""
    content = page.read_text(encoding="utf-8")
    begin, end = f"<!-- begin {section} -->\n", f"<!-- end {section} -->"
    before, _, rest = content.partition(begin)
    _, _, after = rest.partition(end)
    assert after, f"{page.name} has no section {section}"
    page.write_text(before + begin + text + "\n" + end + after, encoding="utf-8")


def contact_sheet() -> Figure:
    """Lay out 12 test images of each class, Fashion-MNIST on the left, garments on the right."""
    given = {"dataset": config.RawValue(data.PREFERRED, "")}
    if "TFDS_DATA_DIR" in os.environ:
        given["data_dir"] = config.RawValue(os.environ["TFDS_DATA_DIR"], "")
    real = data.load(config.resolve(given).settings.data)
    drawn = garments.draw(1000, seed=garments.TEST_SEED)
    figure = Figure(figsize=(13.6, 5.567), dpi=150, facecolor="white")
    panels = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.075, right=0.995, top=0.94, bottom=0.01, wspace=0.015)
    for panel, title, (images, labels) in zip(
        panels, ("Fashion-MNIST", "garments"), (real.test, drawn), strict=True
    ):
        mosaic = _mosaic(images, labels, columns=12)
        panel.imshow(mosaic, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto")
        panel.set_title(title, fontsize=13, fontweight="bold", pad=6)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    # A row is 28 pixels and a line; its name stands at its middle.
    panels[0].set_yticks([29 * row + 14.5 for row in range(10)], garments.CLASS_NAMES)
    panels[0].tick_params(axis="y", length=0, labelsize=10.5, pad=5)
    return figure


def _mosaic(
    images: NDArray[np.uint8], labels: NDArray[np.integer], *, columns: int
) -> NDArray[np.uint8]:
    """Join the images, one class a row, with one grey pixel between neighbours."""
    mosaic = np.full((29 * 10 + 1, 29 * columns + 1), 70, np.uint8)
    for row in range(10):
        for column, index in enumerate(np.flatnonzero(labels == row)[:columns]):
            top, left = 29 * row + 1, 29 * column + 1
            mosaic[top : top + 28, left : left + 28] = images[index, ..., 0]
    return mosaic


if __name__ == "__main__":
    main()
