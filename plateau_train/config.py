"""Every knob, said once: name, type, default, bounds, unit and help.

A field of a table below is at once a flag (``--patience``), a TOML key (``patience`` under
``[plateau]``) and a row of the README's table. Defaults live here and nowhere else.

``resolve`` turns defaults < TOML file < environment < flags into one frozen ``Config`` and says of
each value where it came from. All problems are reported at once.
"""

import difflib
import itertools
import json
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

import annotated_types
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from plateau_train.errors import ConfigError

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


class Data(_Table):
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


class Model(_Table):
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


class Optimizer(_Table):
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


class Plateau(_Table):
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


class Run(_Table):
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


class Cluster(_Table):
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


class Config(_Table):
    """One training, completely described."""

    data: Data = Field(default_factory=Data)
    model: Model = Field(default_factory=Model)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    plateau: Plateau = Field(default_factory=Plateau)
    run: Run = Field(default_factory=Run)
    cluster: Cluster = Field(default_factory=Cluster)

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


class Knob(NamedTuple):
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


KNOBS = tuple(
    Knob(table, key, field)
    for table, model in ((name, info.annotation) for name, info in Config.model_fields.items())
    if isinstance(model, type) and issubclass(model, _Table)
    for key, field in model.model_fields.items()
)


def as_text(value: object) -> str:
    """Write a value as a user would type it after its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Given(NamedTuple):
    """What a user gave for a knob: the text, and whether a flag or which variable holds it."""

    text: str
    origin: str


class Resolved(NamedTuple):
    """A configuration, and for each knob's key where its value came from."""

    config: Config
    origins: dict[str, str]

    def value(self, knob: Knob) -> Any:
        return getattr(getattr(self.config, knob.table), knob.key)

    def is_asked(self, key: str) -> bool:
        """Whether a flag or a file gave the value: a variable of the shell is meant for no run."""
        variables = (knob.variable for knob in KNOBS if knob.key == key)
        return self.origin(key) not in ("default", *variables)

    def origin(self, key: str) -> str:
        """Return where a value came from; what an older version knew nothing of is a default."""
        return self.origins.get(key, "default")

    def settle(self, key: str, value: Any, origin: str) -> "Resolved":
        """Put a value that is known to be right in the place of a knob's."""
        (table,) = (knob.table for knob in KNOBS if knob.key == key)
        changed = getattr(self.config, table).model_copy(update={key: value})
        return Resolved(
            self.config.model_copy(update={table: changed}), self.origins | {key: origin}
        )

    def alone(self) -> "Resolved":
        """Leave out how this process finds others: that is of this time, and not of the run."""
        keys = (knob.key for knob in KNOBS if knob.table == "cluster")
        return Resolved(
            self.config.model_copy(update={"cluster": Cluster()}),
            self.origins | dict.fromkeys(keys, "default"),
        )


def resolve(given: Mapping[str, Given], *, file: Path | None = None) -> Resolved:
    """Merge defaults, a TOML file, and what was given for single knobs, which outranks the file.

    Raises ``ConfigError`` with every problem in every source.
    """
    origins = {knob.key: "default" for knob in KNOBS}
    nested: dict[str, dict[str, str]] = {}
    for knob in KNOBS:
        if knob.key in given:
            nested.setdefault(knob.table, {})[knob.key] = given[knob.key].text
    content = {} if file is None else read_toml(file)
    merged: dict[str, dict[str, Any]] = {table: {} for table in Config.model_fields}
    problems: list[str] = []
    for validate, source, name in (
        (Config.model_validate, content, file),
        (Config.model_validate_strings, nested, None),
    ):
        try:
            values = validate(source).model_dump(exclude_unset=True)
        except ValidationError as error:
            problems += _problems(error, given, file=name)
            continue
        for table in values:
            merged[table] |= values[table]
            origins |= dict.fromkeys(values[table], str(name))
    origins |= {key: origin for key, (_, origin) in given.items()}
    if {"seed", "seeds"} <= given.keys():
        problems.append("--seed and --seeds are both given: write one of them")
    elif "seed" in given:  # which outranks the file
        merged["run"].pop("seeds", None)
        origins["seeds"] = "default"
    if not problems:
        config = Config.model_validate(merged)
        problems += config.problems()
        if not problems:
            return Resolved(config, origins)
    raise ConfigError(*problems, hint="plateau-train --help says what each setting means")


class Sweep(NamedTuple):
    """Every combination of some values of some knobs."""

    varied: tuple[Knob, ...]  # those with more than one value
    cells: tuple[Resolved, ...]


def can_vary(knob: Knob) -> bool:
    """Tell whether a sweep can go over several values of a knob: what a result depends on."""
    is_folder = knob.key.endswith("_dir")
    return knob.key == "epochs" or (
        knob.table in ("data", "model", "optimizer", "plateau") and not is_folder
    )


def resolve_sweep(given: Mapping[str, Given], *, file: Path | None = None) -> Sweep:
    """Resolve each combination of the values that flags have, separated by commas.

    Those of a knob that is a list itself are separated by semicolons. Each cell has ``seeds``, be
    it a single one. Raises ``ConfigError`` with every problem of every cell.
    """
    values: dict[str, list[Given]] = {}
    for knob in KNOBS:
        if knob.key not in given:
            continue
        text, origin = given[knob.key]
        separator = ";" if get_origin(knob.field.annotation) is tuple else ","
        texts = text.split(separator) if can_vary(knob) and origin == "flag" else [text]
        values[knob.key] = [Given(part, origin) for part in dict.fromkeys(map(str.strip, texts))]
    problems: dict[str, str] = {}
    cells: dict[Config, Resolved] = {}
    for combination in itertools.product(*values.values()):
        try:
            cell = resolve(dict(zip(values, combination, strict=True)), file=file)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems, error.hint)
            continue
        seeds = cell.config.run.replica_seeds
        cell = cell.settle("seed", 0, "default").settle("seeds", seeds, "the sweep's seeds")
        cells.setdefault(cell.config, cell)  # a value can be written in two ways
    if problems:
        raise ConfigError(*problems, hint=next(iter(problems.values())))
    varied = [
        knob
        for knob in KNOBS
        if knob.key in values and len({cell.value(knob) for cell in cells.values()}) > 1
    ]
    return Sweep(tuple(varied), tuple(cells.values()))


def _problems(
    error: ValidationError, given: Mapping[str, Given], *, file: Path | None
) -> Iterator[str]:
    """Yield one sentence for each knob of one source that is unknown or out of its range."""
    seen = set()
    for problem in error.errors():
        table, *rest = map(str, problem["loc"])
        key = rest[0] if rest else None
        # The second comes of a default that depends on a field with a problem of its own.
        if (table, key) in seen or problem["type"] == "default_factory_not_called":
            continue
        seen.add((table, key))
        knob = next((knob for knob in KNOBS if (knob.table, knob.key) == (table, key)), None)
        if knob is None:
            yield f"{file}: {_misplaced(table, key, problem['type'])}"
            continue
        value = problem["input"]
        shown = as_text(value) or "nothing" if file is None else json.dumps(value, default=str)
        name = f"{file}: {knob.key} in [{knob.table}]"
        if file is None:
            origin = given[knob.key].origin
            name = origin if origin == knob.variable else knob.flag
        near = f" (did you mean {match}?)" if (match := nearest(value, knob.choices)) else ""
        yield f"{name} must be {knob.expected}, got {shown}{near}"


def _misplaced(table: str, key: str | None, kind: str) -> str:
    """Say where a key that is unknown in its place belongs."""
    home = {knob.key: knob.table for knob in KNOBS}
    if table not in Config.model_fields:
        if table in home:
            return f"{table} stands outside its table: put it under [{home[table]}]"
        near = nearest(table, [*Config.model_fields, *home])
        return f"unknown table or key {table}" + (f", did you mean {near}?" if near else "")
    if key is None:
        return f"{table} must be a table: write [{table}] above its keys"
    if kind == "extra_forbidden" and key in home:
        return f"{key} belongs in [{home[key]}], not in [{table}]"
    near = nearest(key, home)
    return f"unknown key {key} in [{table}]" + (f", did you mean {near}?" if near else "")


def nearest(word: object, known: Iterable[str]) -> str | None:
    """Return the known word that a mistyped one is closest to, if any is close."""
    return next(iter(difflib.get_close_matches(str(word), list(known), n=1)), None)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a file that is missing or does not parse is a ``ConfigError``."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist",
            hint="plateau-train config > my.toml writes a file to start from",
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="give a readable TOML file"
        ) from error
    # tomllib's own error is a ValueError, as are those of bytes that are no text and of integers
    # with thousands of digits; thousands of brackets exhaust the stack.
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not valid TOML: {error}",
            hint="text stands in quotes, lists in [ ], and each key once in its table",
        ) from None


def to_toml(config: Config, origins: Mapping[str, str], *, describe: bool = False) -> str:
    """Write a configuration as TOML that ``--config`` reads back, with a comment for each knob.

    The comment says where the value came from, or, to ``describe`` it, what it means. A default
    that is unset or that follows from other knobs is commented out: were it a value, it would
    stay when the file is used with another mode or another optimizer.
    """
    import tomlkit

    document = tomlkit.document()
    for name in Config.model_fields:
        table = tomlkit.table()
        for knob in KNOBS:
            if knob.table != name:
                continue
            value = getattr(getattr(config, name), knob.key)
            origin = origins.get(knob.key, "default")
            origin = "".join(char if char.isprintable() else "?" for char in origin)
            if describe:
                table.add(tomlkit.comment(knob.help))
            if value is None or (origin == "default" and knob.may_be_unset):
                shown = knob.default if describe or value is None else as_text(value)
                line = f"{knob.key} = {shown}"
                table.add(tomlkit.comment(line if describe else f"{line}  # {origin}"))
                continue
            item = tomlkit.item(_plain(value))
            if not describe:
                item.comment(origin)
            table.add(knob.key, item)
        document.add(name, table)
    return tomlkit.dumps(document)


def _plain(value: object) -> object:
    """Return a knob's value as one of TOML's own types."""
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value
