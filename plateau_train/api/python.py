"""The functions and the class ``Run`` of ``import plateau_train``.

They take settings as keyword arguments, with the names, defaults and checks of the command line.
Nothing of the process is changed: not its signals, streams, environment variables or JAX
configuration.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from pydantic import BaseModel

from plateau_train import config
from plateau_train.api import comparison, evaluation, listing, replays, sweeps, training
from plateau_train.api.comparison import Comparison
from plateau_train.api.evaluation import Evaluation
from plateau_train.api.options import PathLike, SettingOptions, SweepOptions
from plateau_train.api.pictures import draw_run
from plateau_train.api.replays import RULE, Replay
from plateau_train.api.sweeps import Sweep
from plateau_train.config import RawValue
from plateau_train.data.csv_files import parse_number
from plateau_train.errors import ConfigError, PlateauTrainError
from plateau_train.process.jax_session import own_configuration
from plateau_train.report.console import Column, Table
from plateau_train.report.notebook import make_report, show_figure
from plateau_train.report.progress import describe_end
from plateau_train.report.rows import Columns, to_columns, to_html
from plateau_train.run.directory import RunDirectory
from plateau_train.run.info import summarize
from plateau_train.run.reader import Run as StoredRun
from plateau_train.run.records import Drop, EpochRecord, ObservedValue
from plateau_train.training.devices import require_threads, use_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")


def _python_words(function: Callable[P, T]) -> Callable[P, T]:
    """Make the errors of a function name arguments instead of flags."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        try:
            return function(*arguments, **options)
        except PlateauTrainError as error:
            error.reword(config.as_arguments)
            raise

    return call


class Run:
    """A run: its settings, what each of its seeds recorded, its weights and its figure."""

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._stored.directory.path

    @property
    def status(self) -> str:
        """Running, done, failed or stopped."""
        return self._stored.state

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings by name: ``train(**run.settings)`` trains the same again."""
        settings = self._stored.settings
        return {
            each.key: each.value_in(settings)
            for each in config.SETTINGS
            if each.key in config.ARGUMENTS
        }

    @property
    def metrics(self) -> Columns:
        """The metrics of each epoch and seed, epoch 0 (the untrained network) first.

        Losses are in nats, accuracies are fractions.
        """
        records, left_out = self._stored.records, {"format", "observations"}
        if all(record.val_loss is None for record in records):
            left_out |= {"val_loss", "val_accuracy"}
        return _columns_of(EpochRecord, records, left_out)

    @property
    def drops(self) -> Columns:
        """The drops of the scale, each with its reason."""
        drops = [event for event in self._stored.events if isinstance(event, Drop)]
        return _columns_of(Drop, drops, {"format", "event"})

    @property
    def observations(self) -> Columns:
        """Each value that the plateau rule observed; an accuracy is recorded as 1 - accuracy."""
        rows = [
            {"replica": record.replica, "seed": record.seed, "epoch": record.epoch}
            | observation.model_dump()
            for record in self._stored.records
            for observation in record.observations
        ]
        return to_columns(rows, ["replica", "seed", "epoch", *ObservedValue.model_fields])

    @property
    def summary(self) -> dict[str, Any]:
        """The final and the best metrics, as ``summary.json`` has them."""
        return summarize(self._stored)

    @_python_words
    def params(self, *, seed: int | None = None, checkpoint: str | int = "best") -> dict[str, Any]:
        """Return the parameters of one seed as nested dictionaries of NumPy arrays.

        ``checkpoint`` is "best", "last" or an epoch whose checkpoint is kept. Raises ``RunError``
        where there is none, and ``ConfigError`` for a seed that the run does not have.
        """
        weights = evaluation.find_checkpoint(self._stored.directory, str(checkpoint))
        replica = self._replica(seed)
        if replica is None and len(self._stored.settings.run.seeds) > 1:
            raise ConfigError(f"{self.path} has several seeds", hint=f"give seed, {self._seeds()}")
        state: dict[str, Any] = {}
        for name, array in weights.arrays.items():
            *path, leaf = name.split("/")
            branch = state
            for part in path:
                branch = branch.setdefault(part, {})
            branch[leaf] = array[replica or 0]
        return state["params"]

    @_python_words
    def evaluate(
        self,
        *,
        seed: int | None = None,
        checkpoint: str | int = "best",
        data_dir: str | Path | None = None,
    ) -> Evaluation:
        """Score a checkpoint on the run's own data; by default the seed that is best there.

        Raises as ``params``, and ``DataError`` for data that are not those of the run.
        """
        folders = config.resolve(config.read_arguments({"data_dir": data_dir}))
        replica = self._replica(seed)
        with own_configuration():
            return evaluation.evaluate(
                self.path, folders, use_process, which=str(checkpoint), replica=replica
            )

    @_python_words
    def resume(self, **settings: Unpack[SettingOptions]) -> "Run":
        """Continue the run where it stopped, or for more ``epochs``; return the run itself.

        Raises ``ChangedSettingsError`` for settings that a run cannot change.
        """
        overrides = config.resolve(config.read_arguments(settings))
        report = make_report(is_quiet=overrides.settings.run.quiet)
        with own_configuration():
            training.resume(self.path, overrides, use_process, report)
        self._stored = StoredRun(self._stored.directory)
        return self

    @_python_words
    def replay(
        self,
        *,
        mode: str | None = None,
        seed: int | None = None,
        compare: Sequence[str] = (),
        from_torch: Mapping[str, Any] | None = None,
        from_keras: Mapping[str, Any] | None = None,
        **rule: Any,
    ) -> Replay:
        """Apply another plateau rule to what the run recorded; see ``replay``."""
        rate = self._stored.settings.optimizer.learning_rate
        overrides = _read_rule(rule, from_torch, from_keras, rate)
        series = replays.read_run(self._stored, overrides, mode, self._replica(seed))
        return replays.replay(series, compare)

    @_python_words
    def plot(self, *, seed: int | None = None, **options: Any) -> "Figure":
        """Draw the panels of all seeds, or of one; ``savefig`` of the figure writes it.

        ``options`` are those of ``plateau-train plot``: panels, size, font_size, style, dark,
        transparent, dpi, title. Raises ``ConfigError`` for others.
        """
        return draw_run(self._stored, self._replica(seed), config.figure_options(options))

    def _replica(self, seed: int | None) -> int | None:
        """Return the replica of a seed."""
        seeds = self._stored.settings.run.seeds
        if seed is None:
            return None
        if seed not in seeds:
            raise ConfigError(f"{self.path} has no seed {seed}", hint=f"give seed, {self._seeds()}")
        return seeds.index(seed)

    def _seeds(self) -> str:
        return f"one of {', '.join(map(str, self._stored.settings.run.seeds))}"

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """Return the figure and a small table, for a notebook."""
        ended = describe_end(self._stored, "")
        rows = {"run": str(self.path), self.status: ended.pop("done")} | ended
        shown = [(name, text) for name, text in rows.items() if name not in ("plot", "next")]
        columns = [Column(itemgetter(0), "", is_number=False)]
        columns += [Column(itemgetter(1), self._stored.settings.schedule_name, is_number=False)]
        return show_figure(self.plot()) + to_html(Table(shown, columns))


class Runs(Sequence[Run]):
    """The runs of a folder, by name, which begins with the time."""

    def __init__(self, listed: Sequence[listing.ListedRun]) -> None:
        self._listed = listed

    def __getitem__(self, index: Any) -> Any:
        found = self._listed[index]
        if isinstance(index, slice):
            return Runs(found)
        return Run(StoredRun(RunDirectory(found.path)))

    def __len__(self) -> int:
        return len(self._listed)

    @property
    def table(self) -> Columns:
        """What each seed of each run achieved, as columns."""
        return to_columns([row for run in self._listed for row in run.rows()])

    def __repr__(self) -> str:
        return f"Runs({[run.name for run in self._listed]})"

    def _repr_html_(self) -> str:
        return to_html(Table(self._listed, listing.COLUMNS))


@_python_words
def train(*, config_file: PathLike | None = None, **settings: Unpack[SettingOptions]) -> Run:
    """Train a network with reduce-on-plateau in a new run folder, and return the run.

    ``settings`` have the names and defaults of docs/settings.md, and outrank those of a TOML file.
    In a notebook a bar shows the progress; elsewhere each epoch is one line, and nothing is printed
    with ``quiet=True``. After an interruption ``load().resume()`` continues the run. Raises
    ``ConfigError`` for settings that cannot be used, ``DataError`` for data that cannot, and
    ``NonFiniteLossError`` when no seed is finite any more.
    """
    resolved = config.resolve(config.read_arguments(settings), file=_path(config_file))
    report = make_report(is_quiet=resolved.settings.run.quiet)
    with own_configuration():
        folder = training.train(resolved, require_threads, report)
    assert folder is not None  # in a single process
    return Run(StoredRun(folder))


def load(path: PathLike = "runs/latest") -> Run:
    """Open a run folder; raises ``RunError`` for one that is not a run."""
    return Run(StoredRun.open(Path(path)))


def runs(folder: PathLike = "runs") -> Runs:
    """List the runs of a folder, or of a sweep."""
    return Runs(listing.list_runs(Path(folder)))


@_python_words
def compare(*runs: Run | Sweep | PathLike, level: float | None = None) -> Comparison:
    """Compare runs with the first one, with 95 % confidence intervals over their seeds.

    A sweep stands for its runs. ``level`` is a test accuracy: the first epoch that reaches it is
    reported. Raises ``ConfigError`` for fewer than two runs.
    """
    return comparison.compare([_path_of(run) for run in runs], level=level)


@_python_words
def sweep(
    *,
    metric: str | None = None,
    config_file: PathLike | None = None,
    **settings: Unpack[SweepOptions],
) -> Sweep:
    """Train every combination of the settings that are lists, each with every seed.

    ``metric`` is the one of the last epoch to sort by, such as "test-loss"; the default is the
    accuracy. Runs that differ in traced settings only are trained in one program. Raises as
    ``train``.
    """
    cells = config.resolve_sweep(config.read_arguments(settings), file=_path(config_file))
    report = make_report(is_quiet=cells.cells[0].settings.run.quiet, is_sweep=True)
    with own_configuration():
        require_threads(cells.cells[0].settings.run.threads)
        return sweeps.start(cells, metric, report, lambda _: None)


def load_sweep(path: PathLike) -> Sweep:
    """Open the folder of a sweep; raises ``RunError`` for another folder."""
    return sweeps.read(Path(path))


@_python_words
def replay(
    values: Iterable[float],
    *,
    compare: Sequence[str] = (),
    from_torch: Mapping[str, Any] | None = None,
    from_keras: Mapping[str, Any] | None = None,
    learning_rate: float | None = None,
    **rule: Any,
) -> Replay:
    """Apply the plateau rule to values, lower is better, and explain each drop.

    ``rule`` has settings of the rule: patience, cooldown, factor, rtol, atol, accumulation_size (1
    by default) and min_scale. ``from_torch`` and ``from_keras`` have the parameters of these
    libraries' rules instead, of which ``min_lr`` depends on ``learning_rate``. ``compare`` names
    libraries whose rules are applied as well: "optax", "torch", "keras". Raises ``ConfigError`` for
    a value that is not finite.
    """
    given = config.read_arguments({"learning_rate": learning_rate})
    rate = config.resolve(given).settings.optimizer.learning_rate
    overrides = _read_rule(rule, from_torch, from_keras, rate)
    numbers = [parse_number(str(value), f"value {n}") for n, value in enumerate(values, start=1)]
    return replays.replay(replays.make_series("a list", "value", numbers, overrides), compare)


def _read_rule(
    rule: Mapping[str, Any],
    from_torch: Mapping[str, Any] | None,
    from_keras: Mapping[str, Any] | None,
    learning_rate: float,
) -> dict[str, RawValue]:
    """Return the settings of a rule, given or translated."""
    overrides = config.read_arguments(rule, RULE)
    given = {"torch": from_torch, "keras": from_keras}
    translations = {name: value for name, value in given.items() if value is not None}
    if len(translations) > 1:
        raise ConfigError("from_torch and from_keras both set the rule", hint="leave out one")
    for library, parameters in translations.items():
        text = ",".join(f"{name}={value}" for name, value in parameters.items())
        overrides |= replays.translate_flags(library, text, overrides, learning_rate)
    return overrides


def _columns_of(model: type[BaseModel], records: Sequence[BaseModel], omitted: set[str]) -> Columns:
    names = [*model.model_fields, *model.model_computed_fields]
    rows = [record.model_dump(exclude=omitted) for record in records]
    return to_columns(rows, [name for name in names if name not in omitted])


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _path_of(run: Run | Sweep | PathLike) -> Path:
    if isinstance(run, Run):
        return run.path
    return run.folder if isinstance(run, Sweep) else Path(run)
