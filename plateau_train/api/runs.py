"""The class ``Run``: what Python does with one run, and the list of the runs of a folder."""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

from pydantic import BaseModel

from plateau_train import config
from plateau_train.api import evaluation, exports, listing, predictions, replays, training
from plateau_train.api.evaluation import Evaluation
from plateau_train.api.options import (
    Arrays,
    PathLike,
    SettingOptions,
    as_path,
    for_python,
    read_settings,
)
from plateau_train.api.pictures import draw_into, draw_run
from plateau_train.api.predictions import Predictions
from plateau_train.api.replays import RULE, Replay
from plateau_train.config import FIGURE_OPTIONS, SETTINGS
from plateau_train.errors import ConfigError
from plateau_train.process import clock
from plateau_train.process.jax_session import own_configuration
from plateau_train.report.console import Column, Table
from plateau_train.report.notebook import make_report, show_figure
from plateau_train.report.progress import describe_end
from plateau_train.report.rows import Columns, to_columns, to_html
from plateau_train.run.directory import RunDirectory
from plateau_train.run.info import summarize
from plateau_train.run.reader import Run as StoredRun
from plateau_train.run.records import Drop, EpochRecord, ObservedValue
from plateau_train.training import setup
from plateau_train.training.devices import use_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The panels in rows that can be read at the width of a notebook.
IN_NOTEBOOK: dict[str, Any] = {"size": (13, 8), "dpi": 100}


class Run:
    """A run: its settings, what each of its seeds recorded, its weights and its figure.

    The files of the run folder are read when they are first needed, and once.
    """

    def __init__(self, stored: StoredRun) -> None:
        self._stored = stored

    @classmethod
    def at(cls, path: Path) -> "Run":
        """Return the run of a folder, in which nothing is read yet."""
        return cls(StoredRun(RunDirectory(path)))

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._stored.directory.path

    @property
    @for_python()
    def status(self) -> str:
        """Whether the run is "running", "done", "failed" or "stopped"."""
        return self._stored.state

    @property
    @for_python()
    def settings(self) -> dict[str, Any]:
        """The resolved settings by name: ``train(**run.settings)`` trains the same again."""
        return config.by_name(self._stored.settings)

    @property
    @for_python()
    def metrics(self) -> Columns:
        """The metrics of each epoch and seed, epoch 0 (the untrained network) first.

        Losses are in nats, accuracies are fractions.
        """
        return _columns_of(EpochRecord, self._stored.records, {"format", "observations"})

    @property
    @for_python()
    def drops(self) -> Columns:
        """The drops of the scale, each with its reason."""
        drops = [event for event in self._stored.events if isinstance(event, Drop)]
        return _columns_of(Drop, drops, {"format", "event"})

    @property
    @for_python()
    def observations(self) -> Columns:
        """Each value that the plateau rule observed; an accuracy is recorded as 1 - accuracy."""
        rows = [
            {"replica": record.replica, "seed": record.seed, "epoch": record.epoch}
            | {"step": observation.step, "value": observation.value, "raw": observation.measured}
            for record in self._stored.records
            for observation in record.observations
        ]
        types = dict.fromkeys(("replica", "seed", "epoch"), int) | _types_of(ObservedValue)
        return to_columns(rows, types)

    @property
    @for_python()
    def summary(self) -> dict[str, Any]:
        """The final and the best metrics, as ``summary.json`` has them."""
        return summarize(self._stored)

    @for_python()
    def params(self, *, seed: int | None = None, checkpoint: str | int = "best") -> dict[str, Any]:
        """Return the parameters of one seed as nested dictionaries of NumPy arrays.

        ``checkpoint`` is "best", "last" or an epoch whose checkpoint is kept. ``seed`` is needed
        where there are several. Raises ``RunError`` where there is no such checkpoint or the seed
        had diverged, and ``ConfigError`` for a seed that the run does not have.
        """
        replica = self._only_replica(seed)
        evaluation.check_name(str(checkpoint))
        weights = evaluation.find_checkpoint(self._stored.directory, str(checkpoint))
        seeds, epoch = self._stored.settings.run.seeds, weights.manifest.epoch
        records = evaluation.read_records(self._stored.directory, epoch)
        evaluation.choose_replica(records, seeds, replica, epoch)
        state: dict[str, Any] = {}
        for name, array in weights.arrays.items():
            *path, leaf = name.split("/")
            branch = state
            for part in path:
                branch = branch.setdefault(part, {})
            branch[leaf] = array[replica]
        return state["params"]

    @for_python()
    def evaluate(
        self,
        *,
        seed: int | None = None,
        checkpoint: str | int = "best",
        data_dir: PathLike | None = None,
        dataset: PathLike | Arrays | None = None,
        model: str | None = None,
    ) -> Evaluation:
        """Score a checkpoint on the run's own data; by default the seed that is best there.

        ``dataset`` is the new path of images that have moved, or the arrays again; ``model`` names
        the code of a network again. Raises as ``params``, and ``DataError`` for data that are not
        those of the run.
        """
        given = {"data_dir": data_dir, "dataset": dataset, "model": model}
        places = config.resolve(read_settings(given))
        replica = self._replica(seed)
        with own_configuration():
            return evaluation.evaluate(
                self.path, places, use_process, which=str(checkpoint), replica=replica
            )

    @for_python()
    def predict(
        self,
        images: Any,
        *,
        seed: int | None = None,
        checkpoint: str | int = "best",
        resize: bool = False,
        model: str | None = None,
    ) -> Predictions:
        """Predict the classes of images; by default with the seed that is best in the checkpoint.

        ``images`` is a uint8 array [image, height, width, channel], without the channel if the
        images are gray, or a single image, or paths of images, of folders and of ``.npz`` files.
        Images of another size are refused unless ``resize``. Raises as ``params``, and
        ``DataError`` for what are no such images.
        """
        places = config.resolve(config.read_arguments({"model": model}))
        replica = self._replica(seed)
        with own_configuration():
            return predictions.predict(
                self.path, images, places, use_process,
                which=str(checkpoint), replica=replica, resize=resize,
            )  # fmt: skip

    @for_python()
    def export(
        self,
        format: str,  # noqa: A002
        *,
        path: PathLike | None = None,
        checkpoint: str | int = "best",
        seed: int | None = None,
        model: str | None = None,
    ) -> Path:
        """Write the run for other programs, by default into its folder; return the path.

        ``format`` is "safetensors" or "stablehlo" for the weights of a checkpoint, by default of
        the seed that is best there, or "csv" or "tensorboard" for the metrics of all seeds. Raises
        as ``params``, and ``ConfigError`` for a file that is there and is not an earlier export.
        """
        place = None if path is None else as_path(path)
        folders = config.resolve(config.read_arguments({"model": model}))
        which, replica = str(checkpoint), self._replica(seed)
        with own_configuration():
            return exports.export(
                self.path, format, folders, use_process, place, which=which, replica=replica
            )

    @for_python(SETTINGS, SettingOptions.__annotations__, has_defaults=False)
    def resume(self, **settings: Unpack[SettingOptions]) -> "Run":
        """Continue the run where it stopped, or for more ``epochs``; return the run itself.

        A setting that is not given stays as it is, but for ``quiet``. A run that is done is left as
        it is. Raises ``ChangedSettingsError`` for settings that a run cannot change.
        """
        clock.start()
        overrides = config.resolve(read_settings(settings))
        report = make_report(is_quiet=overrides.settings.run.quiet)
        try:
            with own_configuration():
                training.resume(self.path, overrides, use_process, report)
        finally:
            self._stored = StoredRun(self._stored.directory)
        return self

    @for_python()
    def check(self) -> list[str]:
        """Verify all files of the run, and say what is intact; nothing is changed.

        Raises ``RunError`` with everything that is damaged.
        """
        return list(setup.check(self._stored.directory, config.resolve({})))

    @for_python(tuple(RULE.values()), has_defaults=False)
    def replay(
        self,
        *,
        mode: str | None = None,
        seed: int | None = None,
        compare: str | Sequence[str] = (),
        from_torch: Mapping[str, Any] | None = None,
        from_keras: Mapping[str, Any] | None = None,
        **rule: Any,
    ) -> Replay:
        """Apply another plateau rule to what the run recorded; see ``replay``.

        A setting of the rule that is not given is the run's own. ``mode`` is another metric of the
        run, such as "test-loss". ``seed`` is needed where there are several.
        """
        rate = self._stored.settings.optimizer.learning_rate
        overrides = replays.read_rule(rule, from_torch, from_keras, rate)
        series = replays.read_run(self._stored, overrides, mode, self._only_replica(seed))
        return replays.replay(series, replays.as_names(compare))

    @for_python(FIGURE_OPTIONS)
    def plot(
        self, *, seed: int | None = None, path: PathLike | None = None, **options: Any
    ) -> "Figure":
        """Draw the panels of all seeds, or of one; also save them to ``path`` if given.

        The options are those of ``plateau-train plot``, such as ``size=(12, 4)`` in inches. Raises
        ``ConfigError`` for others.
        """
        draw = partial(draw_run, self._stored, self._replica(seed))
        return draw_into(path, draw, options)

    def _replica(self, seed: int | None) -> int | None:
        """Return the replica of a seed."""
        seeds = self._stored.settings.run.seeds
        if seed is None:
            return None
        if seed not in seeds:
            raise ConfigError(f"{self.path} has no seed {seed}", hint=f"give {self._seeds()}")
        return seeds.index(seed)

    def _only_replica(self, seed: int | None) -> int:
        """Return the replica of a seed, which must be given where there are several."""
        if seed is None and len(self._stored.settings.run.seeds) > 1:
            raise ConfigError(f"{self.path} has several seeds", hint=f"give {self._seeds()}")
        return self._replica(seed) or 0

    def _seeds(self) -> str:
        return f"one of its seeds, {self._stored.settings.run.seed}, as the number seed"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str | None:
        """Return the figure and a small table, for a notebook; None before the first epoch."""
        if not self._stored.records:
            return None
        ended = describe_end(self._stored, "")
        rows = {"run": str(self.path), self.status: ended.pop("done")} | ended
        shown = [(name, text) for name, text in rows.items() if name not in ("plot", "next")]
        columns = [Column(itemgetter(0), "", is_number=False)]
        columns += [Column(itemgetter(1), self._stored.settings.schedule_name, is_number=False)]
        return show_figure(self.plot(**IN_NOTEBOOK)) + to_html(Table(shown, columns))


class Runs(Sequence[Run]):
    """The runs of a folder, by name, which begins with the time."""

    def __init__(self, listed: Sequence[listing.ListedRun]) -> None:
        self._listed = listed

    @overload
    def __getitem__(self, index: int) -> Run: ...

    @overload
    def __getitem__(self, index: slice) -> "Runs": ...

    def __getitem__(self, index: int | slice) -> "Run | Runs":
        if isinstance(index, slice):
            return Runs(self._listed[index])
        return Run.at(self._listed[index].path)

    def __len__(self) -> int:
        return len(self._listed)

    @property
    def results(self) -> Columns:
        """What each seed of each run achieved, as columns."""
        rows = [row for run in self._listed for row in run.rows()]
        return to_columns(rows, dict.fromkeys(listing.FIELDS))

    def __repr__(self) -> str:
        return f"Runs({[run.name for run in self._listed]})"

    def _repr_html_(self) -> str:
        return to_html(Table(self._listed, listing.COLUMNS))


def _types_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a record and their types."""
    types = {name: field.annotation for name, field in model.model_fields.items()}
    return types | {name: each.return_type for name, each in model.model_computed_fields.items()}


def _columns_of(model: type[BaseModel], records: Sequence[BaseModel], omitted: set[str]) -> Columns:
    rows = [record.model_dump() for record in records]
    return to_columns(
        rows, {name: kind for name, kind in _types_of(model).items() if name not in omitted}
    )
