"""Measure plateau-train and the alternatives, and write the tables of docs/performance.md.

    .venv/bin/python scripts/benchmark.py --write              # hours on two cores
    .venv/bin/python scripts/benchmark.py --only start epoch   # parts of it
    .venv/bin/python scripts/benchmark.py --output FILE        # measures what FILE lacks
    .venv/bin/python scripts/benchmark.py --read FILE --write  # the table of an earlier --output

Needs a prepared Fashion-MNIST (TFDS_DATA_DIR), pip install -e '.[benchmark]', and a machine that
does nothing else. Every program runs as a whole process, in turn with the others, round by round
and every other round in the opposite order; ratios are taken within a round.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

# What this process holds in memory is the least that the kernel reports of a child, so nothing
# large is imported here.
from plateau_train.run.environment import available_cores, describe_processor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RIVALS = Path(__file__).resolve().parent / "rivals"
PACKAGES = ("jax", "flax", "optax", "numpy", "tensorflow-datasets", "torch")
CACHE_VARIABLE = "PLATEAU_TRAIN_CACHE_DIR"
# What would make a program faster or slower than it is where nothing is set.
NOT_INHERITED = (
    "JAX_", "XLA_", "NPROC", "TF_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH",
    "MALLOC_", "PYTHONDONTWRITEBYTECODE", "PLATEAU_TRAIN_",
)  # fmt: skip

OURS, NOTEBOOK, TUNED, DEFAULT = "plateau-train", "notebook", "pytorch tuned", "pytorch default"
# Whoever learns passes it in the first epoch.
LEAST_TEST_ACCURACY = 0.8
# Enough to have compiled all, and to have all in memory.
SHORT_EPOCHS = 2
EPOCHS = 50  # of the published experiment
# A network of which an epoch is one step, and the epochs around which its speed is measured, by
# the seeds.
TINY = (
    "--dataset=garments", "--train-examples=128", "--test-examples=128", "--hidden-sizes=8",
)  # fmt: skip
TINY_EPOCHS = {"0": (450, 3800), "0-63": (50, 290)}
TINY_GOALS = {"0": 150, "0-63": 60}
TINY_SPAN = 40
TRAIN_SETS = 6  # the training images, in sets as large as that of the test images
EPOCH_LINE = re.compile(r"epoch (?P<epoch>\d+)/.* test loss .*? acc (?P<accuracy>\S+)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=10, help="of each training (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--output", type=Path, help="JSON file for all figures; adds what it lacks")
    parser.add_argument("--read", type=Path, help="take the figures of such a file, measure none")
    parser.add_argument("--write", action="store_true", help="also into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.epochs < SHORT_EPOCHS or arguments.rounds < 1:
        parser.error(f"it takes {SHORT_EPOCHS} epochs and 1 round at least")
    if arguments.read:
        figures = json.loads(arguments.read.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory(prefix="plateau-train-benchmark-") as scratch:
            bench = Bench(Path(scratch), epochs=arguments.epochs, rounds=arguments.rounds)
            figures = bench.begin(arguments.output)
            for _ in bench.measure(figures, arguments.only):
                if arguments.output:  # after each part, for it may be a long time to the last
                    arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    text = "\n".join(describe(figures))
    print(text)
    if arguments.write:
        if not set(PARTS) <= set(figures):
            parser.error("docs/performance.md shows all parts")
        from reproduce import DOCS, rewrite

        rewrite(DOCS / "performance.md", "benchmark", text)
        draw(figures).savefig(DOCS / "performance.png")


class Finished(NamedTuple):
    """A process that has ended."""

    seconds: float
    peak_bytes: int  # resident, of it or of the largest process that it waited for
    lines: list[tuple[float, str]]  # of its standard output, and the seconds until each came


class Bench:
    """A folder for all that is written, and the whole runs that several parts look at."""

    def __init__(self, scratch: Path, *, epochs: int, rounds: int) -> None:
        self._scratch = scratch
        self._epochs = epochs
        self._rounds = rounds
        self._arrays = scratch / "fashion_mnist.npz"
        self._our_runs: list[tuple[Finished, Path]] = []

    def begin(self, output: Path | None) -> dict[str, Any]:
        """Return the figures of an earlier output, or none; leave if they are not comparable."""
        figures = {
            "machine": describe_machine(),
            "epochs": self._epochs,
            "rounds": self._rounds,
        }
        if output is None or not output.exists():
            return figures | {"elsewhere": {}}
        earlier = json.loads(output.read_text(encoding="utf-8"))
        if any(earlier[name] != value for name, value in figures.items()):
            sys.exit(f"{output} is of another machine, version or number of epochs or rounds")
        return earlier

    def measure(self, figures: dict[str, Any], parts: Sequence[str]) -> Iterator[str]:
        """Add the seconds and bytes of all rounds to the figures; yield after each part."""
        say("not measured: decodes the data and fills the caches")
        self.run([sys.executable, __file__, "decode", str(self._arrays)])
        self.train(1)
        for part, measure in PARTS.items():
            if part in parts and part not in figures:
                say(part)
                load = Load()
                figures[part] = measure(self)
                figures["elsewhere"][part] = load.elsewhere()
                yield part

    def run(self, command: Sequence[str], *, cache: str = "cache") -> Finished:
        """Run a program to its end; where it fails, leave with what it said."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(NOT_INHERITED)
        } | {CACHE_VARIABLE: str(self._scratch / cache)}
        with (self._scratch / "stderr").open("w+") as errors:
            started = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=self._scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            lines = [
                (time.perf_counter() - started, line.rstrip("\n")) for line in process.stdout or ()
            ]
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0:
                errors.seek(0)
                sys.exit(f"{' '.join(command)}\nended with {process.returncode}: {errors.read()}")
        unit = 1 if sys.platform == "darwin" else 1024
        return Finished(seconds, usage.ru_maxrss * unit, lines)

    def train(self, epochs: int, *, cache: str = "cache") -> tuple[Finished, Path]:
        """Train with plateau-train; return the process and its run's folder."""
        finished = self.run([*OUR_COMMAND, *training_arguments(epochs)], cache=cache)
        find_test_accuracy(OURS, finished, epochs)
        return finished, (self._scratch / "runs" / "latest").resolve()

    def commands(self) -> dict[str, Any]:
        """Time whole trainings: by plateau-train, and by what would be run otherwise."""
        output = self._scratch / "output"
        output.mkdir()
        arrays = ("--data", str(self._arrays))
        programs = {
            NOTEBOOK: ["notebook.py"],
            TUNED: ["pytorch.py", "--style", "tuned", *arrays],
            DEFAULT: ["pytorch.py", "--style", "default", *arrays],
        }

        def train(name: str, epochs: int) -> Finished:
            if name == OURS:
                self._our_runs.append(self.train(epochs))
                return self._our_runs[-1][0]
            script, *arguments = programs[name]
            command = [sys.executable, str(RIVALS / script), *arguments, "--output", str(output)]
            return self.run([*command, "--epochs", str(epochs)])

        for name in programs:
            train(name, 1)
        figures = {name: [] for name in (OURS, *programs)}
        for name in self._in_turn(figures):
            finished = train(name, self._epochs)
            accuracy = find_test_accuracy(name, finished, self._epochs)
            figures[name].append(
                {
                    "seconds": finished.seconds,
                    "peak_bytes": finished.peak_bytes,
                    "test_accuracy": accuracy,
                }
            )
            say(f"{name}: {finished.seconds:.1f} s, test accuracy {accuracy:.4f}")
        return figures

    def epoch(self) -> list[dict[str, float]]:
        """Time the training epoch and the parts of its floor."""
        script = [sys.executable, str(RIVALS / "floor.py")]
        finished = self.run([*script, "--data", str(self._arrays), "--rounds", str(self._rounds)])
        return [json.loads(line) for _, line in finished.lines]

    def whole(self) -> list[dict[str, float]]:
        """Time the published experiment, and right before it what it cannot be faster than."""
        imports = [sys.executable, "-c", "import jax"]
        self.run(imports)
        figures = []
        for number in range(self._rounds):
            say(f"round {number + 1} of {self._rounds}")
            floor = [sys.executable, str(RIVALS / "floor.py"), "--data", str(self._arrays)]
            _, line = self.run([*floor, "--rounds", "1"]).lines[0]
            seconds = {"jax": self.run(imports).seconds, "whole": self.train(EPOCHS)[0].seconds}
            figures.append(json.loads(line) | seconds)
        return figures

    def tiny(self) -> dict[str, list[list[float]]]:
        """Return how many epochs a second a network of 8 units makes, around some epochs."""
        return {
            seeds: [self._train_tiny(seeds, places) for _ in range(self._rounds)]
            for seeds, places in TINY_EPOCHS.items()
        }

    def _train_tiny(self, seeds: str, places: Sequence[int]) -> list[float]:
        epochs = places[-1] + TINY_SPAN
        finished = self.run([*OUR_COMMAND, *TINY, f"--seed={seeds}", f"--epochs={epochs}"])
        printed = [second for second, line in finished.lines if EPOCH_LINE.match(line)]
        return [
            2 * TINY_SPAN / (printed[place + TINY_SPAN] - printed[place - TINY_SPAN])
            for place in places
        ]

    def seeds(self) -> list[dict[str, float]]:
        """Time eight seeds in one program, and one after the other, without their starts."""
        figures = []
        for number in range(self._rounds):
            say(f"round {number + 1} of {self._rounds}")
            together = self._train_seeds("0-7")
            alone = [self._train_seeds(str(seed)) for seed in range(8)]
            figures.append(
                {
                    "together": together[0],
                    "alone": sum(training for training, _ in alone),
                    "together whole": together[1],
                    "alone whole": sum(whole for _, whole in alone),
                }
            )
        return figures

    def _train_seeds(self, seeds: str) -> tuple[float, float]:
        """Return the seconds from the line of epoch 0 to that of the last one, and all of them."""
        arguments = [*training_arguments(SHORT_EPOCHS), f"--seed={seeds}"]
        finished = self.run([*OUR_COMMAND, *arguments])
        first, *_, last = (second for second, line in finished.lines if EPOCH_LINE.match(line))
        return last - first, finished.seconds

    def overhead(self) -> list[list[float]]:
        """Return what else each epoch took, as a share of its training; a list a run.

        From the line of one epoch to the line of the next, which come when all else is done.
        Without epoch 1, whose first steps are compiled.
        """
        shares = []
        for finished, folder in self._whole_runs():
            timings = (folder / "timings.jsonl").read_text(encoding="utf-8").splitlines()
            training = [json.loads(line)["train_seconds"] for line in timings]
            printed = [second for second, line in finished.lines if EPOCH_LINE.match(line)]
            shares.append(
                [
                    (printed[epoch] - printed[epoch - 1]) / training[epoch] - 1
                    for epoch in range(2, self._epochs + 1)
                ]
            )
        return shares

    def memory(self) -> dict[str, list[int]]:
        """Return the peak of each run, with what the caches hold and without."""
        cold = (self.train(SHORT_EPOCHS, cache=self._no_cache()) for _ in range(self._rounds))
        return {
            "warm": [finished.peak_bytes for finished, _ in self._whole_runs()],
            "cold": [finished.peak_bytes for finished, _ in cold],
        }

    def start(self) -> dict[str, list[float]]:
        """Time what a user waits for."""
        _, folder = self._whole_runs(at_least=1)[0]
        first_step = [sys.executable, __file__, "first-step", *training_arguments(SHORT_EPOCHS)]
        waits: dict[str, Callable[[], Finished]] = {
            "help": partial(self.run, [*OUR_COMMAND, "--help"]),
            "plot": partial(self.run, [*OUR_COMMAND, "plot", str(folder)]),
            "warm": partial(self.run, first_step),
            "cold": lambda: self.run(first_step, cache=self._no_cache()),
        }
        for wait in waits.values():
            wait()
        figures: dict[str, list[float]] = {name: [] for name in waits}
        for name in self._in_turn(waits):
            figures[name].append(waits[name]().seconds)
        return figures

    def _in_turn(self, names: Iterable[str]) -> Iterator[str]:
        """Yield all names once a round, in every other round backwards."""
        for number in range(self._rounds):
            say(f"round {number + 1} of {self._rounds}")
            yield from list(names)[:: -1 if number % 2 else 1]

    def _whole_runs(self, at_least: int | None = None) -> list[tuple[Finished, Path]]:
        """Return the runs of the part that compares, or make them where it was left out."""
        while len(self._our_runs) < (at_least or self._rounds):
            self._our_runs.append(self.train(self._epochs))
        return self._our_runs

    def _no_cache(self) -> str:
        shutil.rmtree(self._scratch / "no-cache", ignore_errors=True)
        return "no-cache"


PARTS: Mapping[str, Callable[[Bench], Any]] = {
    "commands": Bench.commands,
    "epoch": Bench.epoch,
    "whole": Bench.whole,
    "tiny": Bench.tiny,
    "seeds": Bench.seeds,
    "overhead": Bench.overhead,
    "memory": Bench.memory,
    "start": Bench.start,
}

OUR_COMMAND = (sys.executable, "-m", "plateau_train")


def training_arguments(epochs: int) -> tuple[str, ...]:
    """Ask for the default training, but for the real data by name: it falls back to nothing."""
    return ("--mode=train-loss", "--dataset=fashion_mnist", f"--epochs={epochs}")


def find_test_accuracy(name: str, finished: Finished, epochs: int) -> float:
    """Return the last test accuracy, or leave where a program did not train, or learned nothing."""
    lines = [match for _, line in finished.lines if (match := EPOCH_LINE.match(line))]
    if [int(line["epoch"]) for line in lines] != list(range(epochs + 1)):
        sys.exit(f"{name} did not print the epochs 0 to {epochs}: {finished.lines}")
    accuracy = float(lines[-1]["accuracy"])
    if accuracy < LEAST_TEST_ACCURACY:
        sys.exit(f"{name} learned nothing: test accuracy {accuracy} after {epochs} epochs")
    return accuracy


class Load:
    """What the machine does meanwhile that is none of our doing, where the kernel tells (Linux)."""

    def __init__(self) -> None:
        self._before = self._read()

    def elsewhere(self) -> float | None:
        """Return the share of all cores that other processes, or the host's other guests, took."""
        if not self._before:
            return None
        busy, own, clock = (
            now - before for now, before in zip(self._read(), self._before, strict=True)
        )
        return (busy - own) / (clock * (os.cpu_count() or 1))

    def _read(self) -> tuple[float, ...]:
        """Return the seconds that the cores were busy, those of our processes, and the clock's."""
        table = Path("/proc/stat")
        if not table.exists():
            return ()
        user, nice, system, _, _, *interrupted_and_stolen = map(
            int, table.read_text().splitlines()[0].split()[1:9]
        )
        ticks = user + nice + system + sum(interrupted_and_stolen)
        return ticks / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4]), time.monotonic()


def describe_machine() -> dict[str, Any]:
    """Name everything that the figures depend on."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "processor": describe_processor(),
        "cores": available_cores(),
        "system": platform.system(),
        "versions": versions,
    }


class MedianRange(NamedTuple):
    """Median and range of the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "MedianRange":
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))

    @classmethod
    def of_ratios(cls, dividends: Iterable[float], divisors: Iterable[float]) -> "MedianRange":
        """Divide within each round: what slows a machine down for a while slows both."""
        return cls.of(up / down for up, down in zip(dividends, divisors, strict=True))

    def show(self, form: str, unit: str = "") -> str:
        return f"{self.median:{form}}{unit} ({self.low:{form}} to {self.high:{form}})"


# What stands in the table of each program, and how many times as long it should take as ours.
PROGRAMS = {
    OURS: ("`plateau-train --mode train-loss --epochs {epochs}`", None),
    NOTEBOOK: ("the loop of the notebook: tf.data, a compiled step called from Python", 3),
    TUNED: ("PyTorch, tuned: images as bytes in memory, fused Adam, subnormals flushed", 1),
    DEFAULT: ("PyTorch, default: images as floats, DataLoader", 2.5),
}


def describe(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the generated section for the parts that were measured."""
    if "commands" in figures:
        yield from describe_commands(figures["commands"], figures["epochs"])
        yield ""
    if rows := list(describe_parts(figures)):
        yield "| | measured | goal |"
        yield "|---|---|---|"
        for row in rows:
            yield f"| {' | '.join(row)} |"
        yield ""
    machine, rounds = figures["machine"], figures["rounds"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield (
        f"Medians of {rounds} rounds and their ranges; ratios are taken within a round. Made by "
        f"`scripts/benchmark.py` on {machine['cores']} cores ({machine['processor']}, "
        f"{machine['system']}) with {versions}."
    )
    if elsewhere := [share for share in figures["elsewhere"].values() if share is not None]:
        yield (
            "Other processes and other guests of the host took at most "
            f"{100 * max(0, *elsewhere):.1f} % of the time of the cores."
        )


def describe_commands(
    commands: Mapping[str, Sequence[Mapping[str, float]]], epochs: int
) -> Iterator[str]:
    """Yield the table of the programs that were run side by side."""
    yield "| program | seconds | relative to plateau-train | goal | peak memory | test accuracy |"
    yield "|---|---|---|---|---|---|"
    columns = {
        name: {key: [figures[key] for figures in rounds] for key in rounds[0]}
        for name, rounds in commands.items()
    }
    ours = columns[OURS]["seconds"]
    for name, (what, goal) in PROGRAMS.items():
        seconds, peaks, accuracies = (
            columns[name][key] for key in ("seconds", "peak_bytes", "test_accuracy")
        )
        cells = (
            what.format(epochs=epochs),
            MedianRange.of(seconds).show(".1f"),
            "" if goal is None else MedianRange.of_ratios(seconds, ours).show(".2f"),
            "" if goal is None else f"at least {goal}",
            show_megabytes(peaks),
            f"{statistics.median(accuracies):.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def draw(figures: Mapping[str, Any]) -> "Figure":
    """Draw the seconds of each program beside the least that its epochs can take."""
    from plateau_train.config import FigureOptions
    from plateau_train.plots.style import Theme

    epochs, ours = figures["epochs"], figures["commands"][OURS]
    floor = epochs * statistics.median(floor_of(figures["epoch"]))
    theme = Theme.of(FigureOptions(), 1)
    with theme.applied():
        figure = theme.new_figure(10, 3.6)
        (panel,) = theme.add_panels(figure, 1, 1)
        for row, (name, rounds) in enumerate(figures["commands"].items()):
            seconds = [each["seconds"] for each in rounds]
            median, low, high = MedianRange.of(seconds)
            look = {"color": theme.run_colors[0] if name == OURS else theme.muted, "alpha": 0.6}
            panel.barh(row, median, 0.6, xerr=[[median - low], [high - median]],
                       error_kw={"ecolor": theme.ink, "capsize": 4}, **look)  # fmt: skip
            times = MedianRange.of_ratios(seconds, (each["seconds"] for each in ours)).median
            note = f"  {median:.0f} s" + (f", {times:.2f} times as long" if name != OURS else "")
            panel.text(high, row, note, va="center", fontsize=theme.tick)
        panel.axvline(floor, color=theme.ink, linestyle="--")
        panel.annotate(
            "the matrix products and Adam's bytes alone", (floor, 1), (6, 4),
            xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=theme.tick,
        )  # fmt: skip
        programs = (PROGRAMS[name][0].partition(":")[0] for name in figures["commands"])
        panel.set_yticks(range(len(PROGRAMS)), [OURS, *list(programs)[1:]])
        panel.invert_yaxis()
        panel.set_xlim(0, 1.35 * panel.get_xlim()[1])
        panel.set_xlabel(
            f"seconds for {epochs} epochs, median and range of {figures['rounds']} rounds",
            fontsize=theme.label,
        )
        panel.tick_params(labelsize=theme.tick)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


Row = tuple[str, str, str]  # what was measured, the figure, and the goal


def describe_parts(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the rows of all parts but the programs."""
    yield from describe_floor(figures)
    yield from describe_many(figures)
    yield from describe_rest(figures)


def describe_floor(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what an epoch and a whole run take beside the least work in them."""
    if epoch := figures.get("epoch"):
        columns, fastest = columns_of(epoch)
        products, adam = (columns[fastest[work]] for work in ("products", "adam"))
        yield (
            f"training epoch, relative to the floor: the five large matrix products of each step "
            f"({statistics.median(products):.2f} s, {library_of(fastest['products'])}) and one "
            f"pass over Adam's bytes ({statistics.median(adam):.2f} s, "
            f"{library_of(fastest['adam'])})",
            MedianRange.of_ratios(columns["ours"], floor_of(epoch)).show(".2f")
            + f"; {statistics.median(columns['ours']):.2f} s",
            "at most 1.10",
        )
    if whole := figures.get("whole"):
        columns, fastest = columns_of(whole)
        rows = zip(*(columns[name] for name in (*fastest.values(), "jax")), strict=True)
        # The training images are scored once, which is as much as six test sets.
        least = [
            EPOCHS * (products + adam) + (EPOCHS + 1 + TRAIN_SETS) * scores + jax
            for products, adam, scores, jax in rows
        ]
        yield (
            f"share of `plateau-train --mode train-loss --epochs {EPOCHS}` that the floor, the "
            "products of the evaluations and the import of jax alone would take",
            MedianRange.of_ratios(least, columns["whole"]).show(".2f")
            + f"; {statistics.median(columns['whole']):.1f} s",
            "at least 0.9",
        )


def describe_many(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Yield the speed of tiny networks and of many seeds."""
    for seeds, rounds in figures.get("tiny", {}).items():
        for number, place in enumerate(TINY_EPOCHS[seeds]):
            yield (
                f"epochs a second of `plateau-train {' '.join(TINY)} --seed {seeds}` around epoch "
                f"{place:,}",
                MedianRange.of(rates[number] for rates in rounds).show(".0f"),
                f"at least {TINY_GOALS[seeds]}",
            )
    if seeds := figures.get("seeds"):
        for kind, what, goal in (
            ("", "the epochs of `--seed 0-7`, relative to those of eight single runs", 1.02),
            (" whole", "the same with the starts of the commands", None),
        ):
            together, alone = (
                [each[f"{how}{kind}"] for each in seeds] for how in ("together", "alone")
            )
            ratio = MedianRange.of_ratios(together, alone).show(".2f")
            yield what, ratio, f"at most {goal}" if goal else ""


def describe_rest(figures: Mapping[str, Any]) -> Iterator[Row]:
    """Yield what is not training, memory, and what a user waits for."""
    if overhead := figures.get("overhead"):
        yield (
            "evaluation, metrics, checkpoint and printing, relative to the training of an epoch",
            MedianRange.of(100 * statistics.median(shares) for shares in overhead).show(
                ".1f", " %"
            ),
            "below 8 %",
        )
    if memory := figures.get("memory"):
        yield "peak memory of a run", show_megabytes(memory["warm"]), "below 700 MB"
        yield "the same with empty caches", show_megabytes(memory["cold"]), ""
    for name, what, goal in (
        ("help", "`plateau-train --help`", "below 0.3 s"),
        ("plot", "`plateau-train plot RUN`", "below 1.5 s"),
        ("warm", "from the command to the end of the first training step", "below 2 s"),
        ("cold", "the same with empty caches", ""),
    ):
        if start := figures.get("start"):
            yield what, MedianRange.of(start[name]).show(".2f", " s"), goal


def floor_of(rounds: Sequence[Mapping[str, float]]) -> list[float]:
    """Return the seconds of the least work of an epoch, by rounds."""
    columns, fastest = columns_of(rounds)
    products, adam = (columns[fastest[work]] for work in ("products", "adam"))
    return [sum(pair) for pair in zip(products, adam, strict=True)]


def columns_of(
    rounds: Sequence[Mapping[str, float]],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the seconds of all rounds by name, and the name of the fastest of each work."""
    columns = {name: [seconds[name] for seconds in rounds] for name in rounds[0]}
    fastest = {
        work: min(
            (name for name in columns if name.startswith(work)),
            key=lambda name: statistics.median(columns[name]),
        )
        for work in ("products", "adam", "scores")
    }
    return columns, fastest


def library_of(name: str) -> str:
    return name.partition(" ")[2]


def show_megabytes(peaks: Sequence[float]) -> str:
    return MedianRange.of(peak / 1e6 for peak in peaks).show(",.0f", " MB")


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


# What this script does in processes of its own, by its first argument.


def decode(path: str) -> None:
    """Write the decoded images and labels as PyTorch and the floor take them."""
    import numpy as np

    from plateau_train import config, data

    given = {"dataset": config.RawValue(data.PREFERRED, "")}
    if folder := os.environ.get("TFDS_DATA_DIR"):
        given["data_dir"] = config.RawValue(folder, "")
    dataset = data.load(config.resolve(given).settings.data)
    arrays = {
        f"{split}_{column}": array
        for split in ("train", "test")
        for column, array in getattr(dataset, split)._asdict().items()
    }
    np.savez(path, **arrays)


def take_first_step(*arguments: str) -> None:
    """Run plateau-train, and leave when the first training step has come back."""
    from plateau_train.__main__ import main as run
    from plateau_train.report.progress import RunReport

    def leave(self: RunReport, step: int, loss: float) -> NoReturn:
        del self, loss
        os._exit(0 if step == 1 else 1)

    RunReport.on_chunk = leave
    sys.argv[1:] = arguments
    run()


CHILDREN = {"decode": decode, "first-step": take_first_step}

if __name__ == "__main__":
    if child := CHILDREN.get("".join(sys.argv[1:2])):
        child(*sys.argv[2:])
    else:
        main()
