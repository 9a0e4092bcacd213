"""Every setting, declared once: name, type, default, bounds, unit and help.

A field of a table below is at once a flag (``--patience``), a TOML key (``patience`` under
``[plateau]``) and a row of the README's table. Defaults live here and nowhere else.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

Split = Literal["train", "test", "val"]
Metric = Literal["loss", "accuracy"]
Mode = Literal[
    "train-loss", "test-loss", "val-loss", "train-accuracy", "test-accuracy", "val-accuracy"
]
Precision = Literal["float32", "tf32", "bfloat16"]
Schedule = Literal["plateau", "constant", "cosine", "step"]
OptimizerName = Literal[
    "adam", "adamw", "sgd", "rmsprop", "nadam", "nadamw", "radam", "adabelief", "adagrad",
    "adamax", "amsgrad", "lamb", "lion", "yogi",
]  # fmt: skip

# The defaults of the optimizers that have such a knob: optax's, and for sgd the usual 0.9.
DEFAULT_WEIGHT_DECAY = {"adamw": 1e-4, "nadamw": 1e-4, "lamb": 0.0, "lion": 1e-3}
DEFAULT_MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}

# Counts enter the compiled program as 32-bit integers.
LARGEST_COUNT = 1_000_000_000

LARGEST_SEED = 2**32 - 1

# More trainings at once than any of our plots or tables could show; a typing error such as 0-70000.
MOST_SEEDS = 10_000


def _knob(
    default: Any,
    meaning: str,
    *,
    shown: str = "",
    expected: str = "",
    variable: str = "",
    **bounds: Any,
) -> Any:
    """Declare one knob.

    ``shown`` describes a default that depends on other knobs; such a default is a function of
    the fields before it. ``expected`` replaces the description of the values that it takes.
    ``variable`` is an environment variable, which outranks the file.
    """
    kind = "default_factory" if callable(default) else "default"
    extra: dict[str, Any] = {"shown": shown, "expected": expected, "variable": variable}
    return Field(**{kind: default}, description=meaning, json_schema_extra=extra, **bounds)


def _as_tuple(value: object) -> object:
    """Read a flag's ``1000,1000`` or a TOML array as a tuple; leave what does not fit to fail."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        return tuple(int(part) if part.isdecimal() else part for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _as_seeds(value: object) -> object:
    """Read a flag's ``0-7,12`` or a TOML array as a tuple; leave what does not fit to fail."""
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    seeds: list[int] = []
    for part in value.split(","):
        first, dash, last = (end.strip() for end in part.partition("-"))
        bounds = (first, last if dash else first)
        if not all(end.isdecimal() and len(end) <= 10 for end in bounds):
            return value
        low, high = map(int, bounds)
        if high < low or len(seeds) + high - low >= MOST_SEEDS:
            return value
        seeds += range(low, high + 1)
    return tuple(seeds)


def _distinct(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise PydanticCustomError("seeds", "a seed twice")
    return seeds


def _checked_path(path: Path) -> Path:
    """Refuse what no file system can hold or no file of ours could name."""
    text = str(path)
    if not text or "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise PydanticCustomError("path", "no usable path")
    try:
        path.expanduser()
    except RuntimeError:  # the home of nobody
        raise PydanticCustomError("path", "no usable path") from None
    return path


def _user_cache(_: object) -> Path:
    """Return where programs of this user keep what they can make again (XDG base directories)."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    # The standard says to pass over a relative one; no file of ours could name an unprintable one.
    usable = os.path.isabs(folder) and folder.isprintable()
    return Path(folder if usable else "~/.cache") / "plateau-train"


Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, le=LARGEST_SEED)], ...],
    AfterValidator(_distinct),
    Field(min_length=1, max_length=MOST_SEEDS),
]

FolderPath = Annotated[Path, AfterValidator(_checked_path)]


class _Table(BaseModel):
    # strict: a TOML string is no number. Flags are parsed from text either way.
    # defer_build: --help needs no validators, and would wait for them to be built.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class DataSettings(_Table):
    dataset: str = _knob(
        "auto",
        "Data set: any image classification set of tensorflow-datasets by its name "
        "(fashion_mnist, mnist, kmnist, cifar10, ...), garments (built in, needs no network), or "
        "auto: Fashion-MNIST where it can be had, else garments",
        expected="a data set's name, in lower case",
        pattern=r"^[a-z0-9_]+(/[\w.-]+)?(:[\d.*]+)?$",
    )
    data_dir: FolderPath = _knob(
        Path("~/tensorflow_datasets"),
        "Folder of the prepared data sets",
        variable="TFDS_DATA_DIR",
        strict=False,
    )
    cache_dir: FolderPath = _knob(
        _user_cache,
        "Folder of decoded data sets and compiled programs, for a fast start; safe to delete",
        shown="$XDG_CACHE_HOME/plateau-train, or ~/.cache/plateau-train",
        variable="PLATEAU_TRAIN_CACHE_DIR",
        strict=False,
    )
    batch_size: int = _knob(128, "Images a step", ge=1, le=LARGEST_COUNT)
    val_fraction: float = _knob(
        0.0,
        "Share of the training images held out for validation, the same ones for every seed; "
        "the val modes need it",
        ge=0,
        lt=1,
    )
    train_examples: int | None = _knob(
        None, "Use only the first N training images", shown="all", ge=1, le=LARGEST_COUNT
    )
    test_examples: int | None = _knob(
        None, "Use only the first N test images", shown="all", ge=1, le=LARGEST_COUNT
    )

    @property
    def title(self) -> str:
        """The name of the data set; the built-in drawings are not mistaken for Fashion-MNIST."""
        drawn = " (built-in drawings, not Fashion-MNIST)" if self.dataset == "garments" else ""
        return f"{self.dataset}{drawn}"


class ModelSettings(_Table):
    hidden_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=100_000)], ...], BeforeValidator(_as_tuple)
    ] = _knob(
        (1000, 1000),
        "Units of each hidden layer; an empty list makes a linear model",
        expected="whole numbers from 1 to 100,000, separated by commas",
    )
    precision: Precision = _knob(
        "float32",
        "Precision of the matrix products, where the device has it (tf32 is float32 on a CPU); "
        "parameters, optimizer, loss and rule stay float32",
    )


class OptimizerSettings(_Table):
    optimizer: OptimizerName = _knob("adam", "Optimizer, as optax defines it")
    learning_rate: float = _knob(
        0.01, "Base learning rate, which the scale multiplies", ge=1e-30, le=1e30
    )
    schedule: Schedule = _knob(
        "plateau",
        "What moves the scale: the plateau rule; nothing; half a cosine over all epochs down to "
        "--min-scale; or every --step-epochs a multiplication by --factor. But for plateau the "
        "rule observes and never acts",
    )
    step_epochs: int = _knob(
        10, "Epochs between two drops of --schedule step", ge=1, le=LARGEST_COUNT
    )
    weight_decay: float = _knob(
        lambda fields: DEFAULT_WEIGHT_DECAY.get(fields["optimizer"], 0.0),
        f"Weight decay, for {', '.join(DEFAULT_WEIGHT_DECAY)}",
        shown="optax's: "
        + ", ".join(f"{value:g} for {name}" for name, value in DEFAULT_WEIGHT_DECAY.items()),
        ge=0,
        le=1_000_000,
    )
    momentum: float = _knob(
        lambda fields: DEFAULT_MOMENTUM.get(fields["optimizer"], 0.0),
        f"Momentum, for {' and '.join(DEFAULT_MOMENTUM)}",
        shown=", ".join(f"{value:g} for {name}" for name, value in DEFAULT_MOMENTUM.items()),
        ge=0,
        lt=1,
    )


class PlateauSettings(_Table):
    mode: Mode = _knob(
        "train-loss",
        "Metric that the rule observes, the train modes in windows of steps, the test and val "
        "modes at each epoch's end, an accuracy as 1 - accuracy",
    )
    patience: int = _knob(
        5,
        "Observations in a row without improvement that lower the rate "
        "(5 x 200 steps are 2.1 epochs of 468 steps)",
        ge=1,
        le=LARGEST_COUNT,
    )
    cooldown: int = _knob(
        0, "Observations after a drop during which none is counted", ge=0, le=LARGEST_COUNT
    )
    factor: float = _knob(0.5, "What a drop multiplies the scale by", gt=0, lt=1)
    rtol: float = _knob(
        1e-4,
        "Relative improvement on the best value that counts: to beat is (1 - rtol) best - atol",
        ge=0,
        lt=1,
    )
    atol: float = _knob(
        0.0, "Absolute improvement on the best value that counts", ge=0, le=1_000_000
    )
    accumulation_size: int = _knob(
        lambda fields: 200 if fields["mode"].startswith("train") else 1,
        "Values averaged into one observation: steps in the train modes, epochs otherwise",
        shown="200 in the train modes, 1 otherwise",
        ge=1,
        le=LARGEST_COUNT,
    )
    min_scale: float = _knob(0.0, "Floor of the scale", ge=0, lt=1)

    @property
    def split(self) -> Split:
        """The split that the rule watches."""
        return self.mode.partition("-")[0]  # pyright: ignore[reportReturnType]

    @property
    def metric(self) -> Metric:
        """The metric that the rule watches."""
        return self.mode.partition("-")[2]  # pyright: ignore[reportReturnType]

    def observation_epochs(self, steps_per_epoch: int) -> float:
        """Return how many epochs one observation spans."""
        per_value = 1 / steps_per_epoch if self.split == "train" else 1
        return self.accumulation_size * per_value


class RunSettings(_Table):
    epochs: int = _knob(50, "Passes over the training images", ge=1, le=1_000_000)
    seed: int = _knob(0, "Seed of the parameters and of the order of images", ge=0, le=LARGEST_SEED)
    seeds: Annotated[Seeds | None, BeforeValidator(_as_seeds)] = _knob(
        None,
        "Seeds of several trainings, the replicas, in one program and one run folder",
        shown="--seed alone",
        expected=f"up to {MOST_SEEDS:,} different seeds like 0-7 or 0,2,5-9",
    )
    name: str | None = _knob(
        None,
        "Name of the run, which follows the time in its folder's name",
        shown="the mode, or the schedule",
        expected="a folder name of up to 50 characters, with no slash and no dot in front",
        pattern=r"^[^./\\\p{C}\s][^/\\\p{C}]*$",
        max_length=50,
    )
    runs_dir: FolderPath = _knob(Path("runs"), "Folder of the run folders", strict=False)
    threads: int | None = _knob(
        None,
        "Threads of XLA on the CPU, on which the last bits of a result depend",
        shown="the cores at the start",
        variable="NPROC",
        ge=1,
        le=1024,
    )
    devices: int | None = _knob(
        None,
        "Devices of each process that share a batch, whose size must divide by them all",
        shown="all",
        ge=1,
        le=1_000_000,
    )
    quiet: bool = _knob(False, "Print the run's folder and nothing else")

    @property
    def replica_seeds(self) -> tuple[int, ...]:
        """The seed of each training of the run, replica 0 first."""
        return (self.seed,) if self.seeds is None else self.seeds


class ClusterSettings(_Table):
    """How a process finds the others; a run can be resumed in another way, or alone."""

    coordinator: str | None = _knob(
        None,
        "Where process 0 listens for the others",
        shown="what SLURM, Open MPI or Kubernetes tell, else none",
        expected="HOST:PORT of process 0",
        pattern=r"^[^\s/]+:\d{1,5}$",
    )
    num_processes: int | None = _knob(
        None,
        "Processes that train together; 1 trains alone whatever a cluster tells",
        shown="as for --coordinator",
        ge=1,
        le=1_000_000,
    )
    process_id: int | None = _knob(
        None,
        "Which of them this is, from 0; process 0 prints and writes",
        shown="as for --coordinator",
        ge=0,
        le=1_000_000,
    )
    join_timeout: int = _knob(120, "Seconds to wait until all processes are there", ge=1, le=86_400)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with settings that are fine one by one."""
        together = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        missing = [flag for flag, value in together.items() if value is None]
        is_alone = self.num_processes == 1 and len(missing) == 2
        if 0 < len(missing) < len(together) and not is_alone:
            yield f"{', '.join(together)} belong together: {' and '.join(missing)} is missing"
        number, count = self.process_id, self.num_processes
        if number is not None and count is not None and number >= count:
            yield (
                f"--process-id {number} must be below --num-processes {count}: "
                "they are counted from 0"
            )


class Settings(_Table):
    """One training, completely described."""

    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    plateau: PlateauSettings = Field(default_factory=PlateauSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @property
    def schedule_name(self) -> str:
        """What moves the scale: the mode of the plateau rule, or another schedule."""
        schedule = self.optimizer.schedule
        return self.plateau.mode if schedule == "plateau" else schedule

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with settings that are fine one by one."""
        if self.plateau.rtol == 0 and self.plateau.atol == 0:
            yield "--rtol and --atol are both 0: one of them must be above 0"
        if self.plateau.split == "val" and self.data.val_fraction == 0:
            yield f"--mode {self.plateau.mode} needs held-out images: add --val-fraction 0.1"
        if self.run.seeds is not None and self.run.seed != 0:
            yield f"seed = {self.run.seed} and seeds are both given: write one of them"
        yield from self.cluster.problems()
        optimizer = self.optimizer
        for flag, value, takers in (
            ("--weight-decay", optimizer.weight_decay, DEFAULT_WEIGHT_DECAY),
            ("--momentum", optimizer.momentum, DEFAULT_MOMENTUM),
        ):
            if value and optimizer.optimizer not in takers:
                yield (
                    f"{flag} {value:g} has no meaning for {optimizer.optimizer}: "
                    f"it is for {', '.join(takers)}"
                )


class Setting(NamedTuple):
    """One field of one table, as the command line, the TOML files and the README see it."""

    table: str
    key: str
    field: FieldInfo

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        return (
            get_args(self.field.annotation) if get_origin(self.field.annotation) is Literal else ()
        )

    @property
    def is_switch(self) -> bool:
        return self.field.annotation is bool

    @property
    def may_be_unset(self) -> bool:
        """Whether the default is no value, or one that follows from other knobs."""
        return self.field.default is None or self.field.default_factory is not None

    @property
    def help(self) -> str:
        return self.field.description or ""

    @property
    def _extra(self) -> Mapping[str, Any]:
        extra = self.field.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @property
    def variable(self) -> str | None:
        return self._extra["variable"] or None

    @property
    def default(self) -> str:
        """The default, as a user would type it or in words."""
        return self._extra["shown"] or as_text(self.field.default)

    @property
    def expected(self) -> str:
        """The values that it takes, for a sentence that begins with "must be"."""
        if self._extra["expected"]:
            return self._extra["expected"]
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        types: dict[Any, str] = {
            int: "a whole number", float: "a number", bool: "true or false",
            Path: "a path", str: "text",
        }  # fmt: skip
        annotation = self.field.annotation
        member = next(kind for kind in (get_args(annotation) or (annotation,)) if kind in types)
        words = {
            annotated_types.Gt: "above",
            annotated_types.Ge: "from",
            annotated_types.Lt: "below",
            annotated_types.Le: "to",
        }
        bounds = [
            f"{word} {getattr(bound, kind.__name__.lower()):,}"
            for bound in self.field.metadata
            for kind, word in words.items()
            if isinstance(bound, kind)
        ]
        return " ".join([types[member], *bounds])


SETTINGS = tuple(
    Setting(table, key, field)
    for table, model in ((name, info.annotation) for name, info in Settings.model_fields.items())
    if isinstance(model, type) and issubclass(model, _Table)
    for key, field in model.model_fields.items()
)


def as_text(value: object) -> str:
    """Write a value as a user would type it after its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def nearest(word: object, known: Iterable[str]) -> str | None:
    """Return the known word that a mistyped one is closest to, if any is close."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)
