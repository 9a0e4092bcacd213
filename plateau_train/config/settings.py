"""Every setting, declared once: name, type, default, bounds, help, and its attributes.

A field of a table below is at once a flag (``--patience``), a TOML key (``patience`` under
``[plateau]``) and a row of docs/settings.md. Defaults live here and nowhere else.
"""

import contextlib
import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from plateau_train.errors import ConfigError

Split = Literal["train", "test", "val"]
Metric = Literal["loss", "accuracy"]
Mode = Literal[
    "train-loss", "test-loss", "val-loss", "train-accuracy", "test-accuracy", "val-accuracy"
]
Precision = Literal["float32", "tf32", "bfloat16"]
Augmentation = Literal["none", "shift", "flip,shift"]
OnDrop = Literal["keep", "restore-best", "restore-params"]
Schedule = Literal[
    "plateau", "constant", "cosine", "step", "linear", "rex", "one-cycle", "schedule-free"
]  # fmt: skip
OptimizerName = Literal[
    "adam", "adamw", "sgd", "rmsprop", "nadam", "nadamw", "radam", "adabelief", "adagrad",
    "adamax", "amsgrad", "lamb", "lion", "yogi",
]  # fmt: skip
# Whether a run can continue with another value: no; any explicit value; a larger explicit value;
# another path of the same content; always with the value of the process that resumes.
OnResume = Literal["fixed", "free", "grow", "moved", "local"]

# The optimizers that take weight decay or momentum: optax's defaults, and for sgd the usual 0.9.
DEFAULT_WEIGHT_DECAY = {"adamw": 1e-4, "nadamw": 1e-4, "lamb": 0.0, "lion": 1e-3}
DEFAULT_MOMENTUM = {"sgd": 0.9, "rmsprop": 0.0}
# The optimizers with a schedule-free form, and its name in optax.contrib.
SCHEDULE_FREE = {
    "adam": "schedule_free_adamw", "adamw": "schedule_free_adamw", "sgd": "schedule_free_sgd",
}  # fmt: skip

# The schedules that fall from 1 to --min-scale over all epochs; those whose scale depends on the
# number of epochs, which therefore cannot grow; those that lower the rate whatever is observed.
DECAYS: tuple[Schedule, ...] = ("cosine", "linear", "rex")
BUDGETED: tuple[Schedule, ...] = (*DECAYS, "one-cycle")
LOWERING: tuple[Schedule, ...] = (*BUDGETED, "step")

LARGEST_COUNT = 1_000_000_000  # counts enter the compiled program as 32-bit integers
LARGEST_SEED = 2**32 - 1
MOST_SEEDS = 10_000  # catches a typing error such as 0-70000

# The names of data sets: of tensorflow-datasets, perhaps with a configuration and a version; and
# of arrays in memory, which Python can give.
_DATASET_NAME = re.compile(r"[a-z0-9_]+(/[\w.-]+)?(:[\d.*]+)?|arrays-[0-9a-f]{12}")
# What is a path wherever it leads; other texts with a slash are paths if they exist.
_PATH = re.compile(r"(/|~|\.\.?(/|$)).*|.*(/|\.npz)", re.DOTALL)


class Setting(NamedTuple):
    """One field of one table, for the command line, the TOML files and docs/settings.md."""

    table: str
    key: str
    field: FieldInfo
    default_text: str = ""  # describes a default that is not a constant
    values_text: str = ""  # replaces the generated description of the values
    variable: str | None = None  # an environment variable, which outranks the file
    on_resume: OnResume = "fixed"
    affects_results: bool = True
    per_process: bool = False  # each process of a cluster has its own value
    is_traced: bool = False  # a traced value, one per replica: it shares a compiled program
    separator: str = ","  # of the values of a sweep; a semicolon where a value can have commas
    schedules: tuple[Schedule, ...] = ()  # those whose training depends on it; none stands for all
    is_observation: bool = False  # it changes what the rule observes, which --early-stop counts
    models: tuple[str, ...] = ()  # the same for the built-in networks

    @property
    def can_vary(self) -> bool:
        """Whether a sweep can go over several values."""
        return self.affects_results and self.key != "seed"

    @property
    def flag(self) -> str:
        return "--" + self.key.replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        annotation = self.field.annotation
        return get_args(annotation) if get_origin(annotation) is Literal else ()

    @property
    def is_switch(self) -> bool:
        return self.field.annotation is bool

    def short_text(self, settings: "Settings") -> str:
        """Return its text; of a path to a data set only the name."""
        is_dataset = self.key == "dataset"
        return settings.data.name if is_dataset else self.text(self.value_in(settings))

    def matters_in(self, settings: "Settings") -> bool:
        """Return whether the training depends on it, and not only what the rule records."""
        has_schedule = not self.schedules or settings.optimizer.schedule in self.schedules
        has_schedule |= self.is_observation and settings.plateau.early_stop is not None
        return has_schedule and (not self.models or settings.model.model in self.models)

    def value_in(self, settings: "Settings") -> Any:
        return getattr(getattr(settings, self.table), self.key)

    def effective_value(self, settings: "Settings") -> Any:
        """Return the value, or None if the training does not depend on it."""
        return self.value_in(settings) if self.matters_in(settings) else None

    @property
    def may_be_unset(self) -> bool:
        """Whether the default is no value, or one that follows from other settings."""
        return self.field.default is None or self.field.default_factory is not None

    @property
    def help(self) -> str:
        return self.field.description or ""

    @property
    def default(self) -> str:
        """The default, as a user would type it or in words."""
        return self.default_text or as_text(self.field.default)

    def text(self, value: object) -> str:
        """Write a value as a user would type it, or the words for one that is unset."""
        return self.default if value is None else as_text(value)

    @property
    def expected(self) -> str:
        """The possible values, for a sentence that begins with "must be"."""
        if self.values_text:
            return self.values_text
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        types = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
        words = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
        annotation = self.field.annotation
        (kind,) = {*types} & {*(get_args(annotation) or (annotation,))}
        bounds = (
            f" {word} {getattr(bound, name):,}"
            for bound in self.field.metadata
            for name, word in words.items()
            if hasattr(bound, name)
        )
        return types[kind] + "".join(bounds)


def declare(default: Any, meaning: str, **options: Any) -> Any:
    """Declare a setting. ``options`` are fields of ``Setting`` and bounds of ``pydantic.Field``.

    A default that depends on other settings is a function of the fields before it.
    """
    attributes = {name: options.pop(name) for name in Setting._fields if name in options}
    kind = "default_factory" if callable(default) else "default"
    return Field(**{kind: default}, description=meaning, json_schema_extra=attributes, **options)


_free_setting = partial(declare, on_resume="free", affects_results=False)
_rule_setting = partial(declare, schedules=("plateau",))
_observation_setting = partial(_rule_setting, is_observation=True)


class Seeds(tuple[int, ...]):
    """The seed of each replica, written as a user types them: 3, 0-7 or 0,2,5."""

    __slots__ = ()

    def __str__(self) -> str:
        # In a range, the difference between a seed and its position is constant.
        groups = groupby(enumerate(self), key=lambda pair: pair[1] - pair[0])
        ranges = [[seed for _, seed in group] for _, group in groups]
        return ",".join(
            f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 2 else ",".join(map(str, seeds))
            for seeds in ranges
        )


def _as_json(value: object) -> object:
    """Write a JSON object, or a table of TOML, with sorted keys; return anything else as it is."""
    with contextlib.suppress(ValueError, TypeError):
        content = json.loads(value) if isinstance(value, str) else value
        if isinstance(content, dict):
            return json.dumps(content, sort_keys=True, allow_nan=False)
    raise PydanticCustomError("json", "no JSON object")


def _as_sizes(value: object) -> object:
    """Read a flag's ``1000,1000`` or a TOML array; return anything else as it is, to fail."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        return tuple(int(part) if part.isdecimal() else part for part in parts)
    return tuple(value) if isinstance(value, list) else value


def _as_seeds(value: object) -> object:
    """Read ``3``, ``"0-7,12"`` or an array; return anything else as it is, to fail."""
    if type(value) is int:
        return (value,)
    if not isinstance(value, str):
        return tuple(value) if isinstance(value, list) else value
    seeds: list[int] = []
    for part in value.split(","):
        ends = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", part)
        if ends is None:
            return value
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first or len(seeds) + last - first >= MOST_SEEDS:
            return value
        seeds += range(first, last + 1)
    return tuple(seeds)


def _normal_span(span: int | str) -> int | str:
    """Write a number of epochs like ``2.5epochs``."""
    return span if isinstance(span, int) else f"{epochs_of(span):g}epochs"


def _spans_some(span: int | str) -> int | str:
    if not epochs_of(span):
        raise PydanticCustomError("span", "nothing")
    return span


def epochs_of(span: int | str) -> float:
    """Return the number of a span, in the unit that it has."""
    return float(span.rstrip("epochs ")) if isinstance(span, str) else span


def describe_span(span: int | str) -> str:
    """Return a span as a sentence has it, such as ``5`` or ``2 epochs``."""
    return "1 epoch" if span == "1epochs" else str(span).replace("epochs", " epochs")


class Smoothing(NamedTuple):
    """How observations are smoothed, and the weight or the number of them."""

    kind: Literal["none", "ema", "median"]
    number: float = 0.0

    def __str__(self) -> str:
        return self.kind if self.kind == "none" else f"{self.kind}:{self.number:g}"


MOST_SMOOTHED = 1000  # observations that a median is over


def read_smoothing(text: str) -> Smoothing:
    """Read ``none``, ``ema:0.9`` or ``median:5``; raises ``ValueError`` for anything else."""
    kind, _, number = (part.strip() for part in text.partition(":"))
    if kind == "none" and not number:
        return Smoothing("none")
    if kind == "ema" and 0 <= float(number) < 1:
        return Smoothing("ema", float(number))
    if kind == "median" and 1 <= int(number) <= MOST_SMOOTHED:
        return Smoothing("median", int(number))
    raise ValueError(text)


def _as_smoothing(text: str) -> str:
    try:
        return str(read_smoothing(text))
    except ValueError:
        raise PydanticCustomError("smoothing", "no smoothing") from None


def _distinct(seeds: tuple[int, ...]) -> Seeds:
    if len(set(seeds)) < len(seeds):
        raise PydanticCustomError("seeds", "a seed twice")
    return Seeds(seeds)


def _checked_path(path: Path) -> Path:
    """Refuse a path with an unknown home, or that a file system or a TOML file cannot hold."""
    with contextlib.suppress(RuntimeError, ValueError):
        if b"\0" not in str(path.expanduser()).encode():
            return path
    raise PydanticCustomError("path", "no usable path")


def _printable(name: str) -> str:
    if not name.isprintable():
        raise PydanticCustomError("name", "an invisible character")
    return name


def _as_dataset(text: str) -> str:
    """Return a name as it is, and a path as an absolute one: a resume may start elsewhere."""
    if _PATH.fullmatch(text) or ("/" in text and os.path.exists(text)):
        path = _checked_path(Path(text)).expanduser()
        # A name is taken from its last part, which must not be two dots.
        return os.path.realpath(path) if ".." in path.parts else str(path.absolute())
    if not _DATASET_NAME.fullmatch(text):
        raise PydanticCustomError("dataset", "neither a name nor a path")
    return text


_NUMBER = r"([0-9]+(?:\.[0-9]*)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?|{_NUMBER}")


def _seconds_of(text: str) -> float:
    """Return the seconds of a text such as ``2h30m`` or ``90``, and 0 for any other text."""
    parts = _DURATION.fullmatch(text)
    numbers = parts.groups(default="0") if parts else ()
    return sum(float(n) * unit for n, unit in zip(numbers, (3600, 60, 1, 1), strict=False))


def _as_duration(value: object) -> object:
    """Return a text of a time above 0, or a number as its text; None for the text ``none``."""
    text = str(value)
    if value is None or text == "none":
        return None
    if isinstance(value, bool) or not _seconds_of(text):
        raise PydanticCustomError("duration", "no time above 0")
    return text


BUILT_IN_MODELS = ("mlp", "cnn")
_NETWORK = re.compile(r"([^:]+):([A-Za-z_]\w*(?:\.\w+)*)")  # a file or a module, and a name


def _as_network(text: str) -> str:
    """Return a built-in network or a module as it is, and the path of a file as an absolute one."""
    parts = _NETWORK.fullmatch(text)
    if parts is None and text not in BUILT_IN_MODELS:
        raise PydanticCustomError("network", "neither a name nor a path with a name")
    if parts is None or not parts[1].endswith(".py"):
        return text
    return f"{_checked_path(Path(parts[1])).expanduser().absolute()}:{parts[2]}"


def expand_home(path: Path) -> Path:
    """Replace ~ by the home folder; raises ``ConfigError`` where there is none."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"this user has no home folder, which {path} is in",
            hint="set HOME, or give --data-dir and --cache-dir without ~",
        ) from error


def _user_cache(_: object) -> Path:
    """Return the user's cache directory (XDG base directories)."""
    folder = os.environ.get("XDG_CACHE_HOME", "")
    # The standard ignores a relative path; a TOML file cannot hold an unprintable one.
    usable = os.path.isabs(folder) and folder.isprintable()
    return Path(folder if usable else "~/.cache") / "plateau-train"


# strict=False: a TOML file and JSON have paths as text.
FolderPath = Annotated[Path, Field(strict=False), AfterValidator(_checked_path)]
FolderName = Annotated[
    str, Field(pattern=r"^[^./\\\s][^/\\]*$", max_length=50), AfterValidator(_printable)
]
DatasetName = Annotated[str, AfterValidator(_as_dataset)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0, le=1_000_000)]
Count = Annotated[int, Field(ge=1, le=LARGEST_COUNT)]
OptionalCount = Annotated[int | None, Field(ge=1, le=LARGEST_COUNT)]
LayerSizes = Annotated[
    tuple[Annotated[int, Field(ge=1, le=100_000)], ...], BeforeValidator(_as_sizes)
]
JsonObject = Annotated[str, BeforeValidator(_as_json), AfterValidator(_printable)]
NetworkName = Annotated[str, AfterValidator(_as_network), AfterValidator(_printable)]
# A number of observations, or a text like 2epochs.
_Epochs = Annotated[str, Field(pattern=r"^(\d{1,7}(\.\d*)?|\.\d+) *epochs?$")]
SpanOrNone = Annotated[
    Annotated[int, Field(ge=0, le=LARGEST_COUNT)] | _Epochs, AfterValidator(_normal_span)
]
Span = Annotated[Count | _Epochs, AfterValidator(_normal_span), AfterValidator(_spans_some)]
SmoothingText = Annotated[str, AfterValidator(_as_smoothing)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
SeedTuple = Annotated[
    tuple[Seed, ...],
    Field(min_length=1, max_length=MOST_SEEDS),
    BeforeValidator(_as_seeds, json_schema_input_type=Seed | str | list[Seed]),
    AfterValidator(_distinct),
]
Duration = Annotated[
    str | None, BeforeValidator(_as_duration, json_schema_input_type=float | str | None)
]


class Table(BaseModel):
    # strict: a TOML string is no number. Flags are parsed from text either way.
    # defer_build: --help needs no validators, and would wait for them to be built.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True
    )


class DataSettings(Table):
    dataset: DatasetName = declare(
        "auto",
        "Data set: the name of an image classification set of tensorflow-datasets (fashion_mnist, "
        "mnist, kmnist, cifar10, ...), garments (built in, needs no network), auto "
        "(Fashion-MNIST if it is available, else garments), or the path of your own images (an "
        ".npz file, or a folder with a folder of PNG or JPEG files for each class)",
        values_text="auto, garments, the name of a tensorflow-datasets set, or a path such as "
        "./images or images.npz",
        on_resume="moved",
    )
    data_dir: FolderPath = _free_setting(
        Path("~/tensorflow_datasets"),
        "Folder of the prepared data sets",
        variable="TFDS_DATA_DIR",
        per_process=True,
    )
    cache_dir: FolderPath = declare(
        _user_cache,
        "Folder of decoded data sets and compiled programs, for a fast start; safe to delete. It "
        "must be your own: compiled programs are executable code, so a folder that others own or "
        "may write to is not used",
        default_text="$XDG_CACHE_HOME/plateau-train, or ~/.cache/plateau-train",
        variable="PLATEAU_TRAIN_CACHE_DIR",
        on_resume="local",
        affects_results=False,
        per_process=True,
    )
    batch_size: Count = declare(128, "Images per step")
    val_fraction: Fraction = declare(
        0.0,
        "Fraction of the training images held out for validation, the same images for every seed; "
        "the val modes need it, unless the data set has validation images of its own",
    )
    test_fraction: Fraction = declare(
        0.0,
        "Fraction of your own images held out for testing, the same images of each class for every "
        "seed, where they have no test images",
    )
    train_examples: OptionalCount = declare(
        None,
        "Use only N training images: the first ones or, of your own images, the same random ones",
        default_text="all",
    )
    test_examples: OptionalCount = declare(
        None, "Use only N test images, chosen in the same way", default_text="all"
    )
    augment: Augmentation = declare(
        "none",
        "Random changes of each training image: shift moves it by up to an eighth of its size, "
        "flip mirrors it left to right",
        separator=";",
    )

    @property
    def path(self) -> Path | None:
        """The absolute path of the user's own images, or None for a name."""
        return Path(self.dataset) if self.dataset.startswith("/") else None

    @property
    def is_custom(self) -> bool:
        """Whether the images are the user's own: of a path, or arrays in memory."""
        return self.path is not None or self.dataset.startswith("arrays-")

    @property
    def may_have_val(self) -> bool:
        """Whether images may be held out; the data decide for the user's own."""
        return self.val_fraction > 0 or self.is_custom

    @property
    def name(self) -> str:
        """The name of the data set; that of a path is its last part."""
        if self.path is None:
            return self.dataset
        return self.path.name.removesuffix(".npz") or self.dataset

    @property
    def title(self) -> str:
        """The name of the data set; that of the built-in drawings says that they are drawings."""
        is_drawn = self.dataset == "garments"
        return self.name + " (built-in drawings, not Fashion-MNIST)" * is_drawn


class ModelSettings(Table):
    model: NetworkName = declare(
        "mlp",
        "Network: mlp (dense layers, those of the experiment), cnn (two convolutions and two dense "
        "layers), or your own Flax module as FILE.py:NAME or package.module:NAME",
        values_text="mlp, cnn, FILE.py:NAME or package.module:NAME",
        on_resume="moved",
    )
    model_args: JsonObject = declare(
        "{}",
        'Arguments of the network as JSON, such as {"features": [32, 64]} for cnn',
        values_text='a JSON object such as {"width": 64}',
        separator=";",
    )
    hidden_sizes: LayerSizes = declare(
        (1000, 1000),
        "Units of each hidden layer of mlp; an empty list makes a linear model",
        values_text="whole numbers from 1 to 100,000, separated by commas",
        separator=";",
        models=("mlp",),
    )
    precision: Precision = declare(
        "float32",
        "Precision of the matrix products, if the device supports it (tf32 is float32 on a CPU); "
        "parameters, optimizer, loss and rule stay float32",
    )

    @property
    def place(self) -> tuple[str, str]:
        """The file or the module of the user's own network, and its name there; else empty."""
        where, _, name = self.model.rpartition(":")
        return where, name if where else ""

    @property
    def is_file(self) -> bool:
        return self.place[0].endswith(".py")

    @property
    def arguments(self) -> dict[str, Any]:
        return json.loads(self.model_args)


class OptimizerSettings(Table):
    optimizer: OptimizerName = declare("adam", "Optimizer of optax")
    learning_rate: float = declare(
        0.01, "Base learning rate, multiplied by the scale", is_traced=True, ge=1e-30, le=1e30
    )
    schedule: Schedule = declare(
        "plateau",
        "What sets the scale: the plateau rule; a constant 1; half a cosine, a line or the REX "
        "profile over all epochs down to --min-scale; a multiplication by --factor every "
        "--step-epochs epochs; one cycle of a rise to 1 and a fall; or, schedule-free, a constant "
        f"1 with averaged parameters ({', '.join(SCHEDULE_FREE)}). With any schedule other than "
        "plateau the rule only records; it never lowers the rate",
    )
    step_epochs: Count = declare(
        10, "Epochs between two drops of --schedule step", schedules=("step",)
    )
    warmup_epochs: float = declare(
        0.0,
        "Epochs, or a fraction of one, over which a factor on the scale rises linearly from "
        "--warmup-start to 1; the rule observes nothing until then",
        ge=0,
        le=1_000_000,
    )
    warmup_start: Fraction = declare(0.1, "Factor on the scale at the first step of a warm-up")
    weight_decay: NonNegative = declare(
        lambda fields: DEFAULT_WEIGHT_DECAY.get(fields["optimizer"], 0.0),
        f"Weight decay, for {', '.join(DEFAULT_WEIGHT_DECAY)}",
        default_text="optax's: "
        + ", ".join(f"{value:g} for {name}" for name, value in DEFAULT_WEIGHT_DECAY.items()),
    )
    momentum: Fraction = declare(
        lambda fields: DEFAULT_MOMENTUM.get(fields["optimizer"], 0.0),
        f"Momentum, for {' and '.join(DEFAULT_MOMENTUM)}; it is optax's b1 with --schedule "
        "schedule-free",
        default_text=", ".join(f"{value:g} for {name}" for name, value in DEFAULT_MOMENTUM.items()),
    )

    def warmup_steps(self, steps_per_epoch: float) -> int:
        """Return the steps of the warm-up: at least one, unless it has no epochs."""
        return round(self.warmup_epochs * steps_per_epoch) or math.ceil(self.warmup_epochs)

    def warmup_factor(self, step: float, steps_per_epoch: float) -> float:
        """Return the factor of the warm-up at a step, counted from 0."""
        num_steps, start = self.warmup_steps(steps_per_epoch), self.warmup_start
        return 1.0 if step >= num_steps else start + (1 - start) * step / num_steps


class PlateauSettings(Table):
    mode: Mode = _observation_setting(
        "train-loss",
        "Metric that the rule observes; the train modes average a window of steps, the test and "
        "val modes take the evaluation of each epoch; an accuracy counts as 1 - accuracy",
    )
    patience: Span = _rule_setting(
        5,
        "Observations in a row without improvement after which the rate drops "
        "(5 x 200 steps are 2.1 epochs of 468 steps); 2epochs stands for the fewest observations "
        "that take 2 epochs",
        is_traced=True,
        values_text=f"a whole number from 1 to {LARGEST_COUNT:,}, or epochs such as 2epochs",
    )
    cooldown: SpanOrNone = _rule_setting(
        0,
        "Observations after a drop that do not count towards patience; 2epochs as for --patience",
        is_traced=True,
        values_text=f"a whole number from 0 to {LARGEST_COUNT:,}, or epochs such as 2epochs",
    )
    factor: float = declare(
        0.5,
        "Factor by which a drop multiplies the scale",
        schedules=("plateau", "step"),
        gt=0,
        lt=1,
    )
    rtol: Fraction = _observation_setting(
        1e-4, "Relative improvement that counts: a value must be below (1 - rtol) best - atol"
    )
    atol: NonNegative = _observation_setting(0.0, "Absolute improvement that counts")
    accumulation_size: Count = _observation_setting(
        lambda fields: 200 if fields["mode"].startswith("train") else 1,
        "Values averaged into one observation: steps in the train modes, epochs otherwise",
        default_text="200 in the train modes, 1 otherwise",
    )
    smooth: SmoothingText = _observation_setting(
        "none",
        "Smoothing of the observations that the rule compares: ema:A is the moving average "
        "s = A s + (1 - A) x, which begins with the first x; median:K is the median of the last K",
        values_text=f"none, ema:A with A from 0 below 1, or median:K with K from 1 to "
        f"{MOST_SMOOTHED:,}",
    )
    min_scale: Fraction = declare(
        0.0,
        "Smallest scale allowed",
        schedules=("plateau", "step", *DECAYS),
        is_traced=True,
    )
    max_drops: Annotated[int | None, Field(ge=0, le=LARGEST_COUNT)] = _rule_setting(
        None,
        "End the run when the scale would drop once more after N drops",
        default_text="no limit",
        is_traced=True,
    )
    stop_at_min_scale: bool = _rule_setting(
        False, "End the run when the scale would drop and is --min-scale already"
    )
    early_stop: OptionalCount = declare(
        None,
        "End the run after N observations without improvement, counted from the best one or from "
        "the last drop; more than --patience",
        default_text="never",
        is_traced=True,
    )
    on_drop: OnDrop = _rule_setting(
        "keep",
        "What a drop brings back before the next step: nothing; the parameters and the state of "
        "the optimizer at the best observation; or its parameters alone",
    )

    @property
    def split(self) -> Split:
        """The split that the rule observes."""
        return self.mode.partition("-")[0]  # pyright: ignore[reportReturnType]

    @property
    def metric(self) -> Metric:
        """The metric that the rule observes."""
        return self.mode.partition("-")[2]  # pyright: ignore[reportReturnType]

    def observation_epochs(self, steps_per_epoch: float) -> float:
        """Return how many epochs one observation spans."""
        return self.accumulation_size / (steps_per_epoch if self.split == "train" else 1)

    def count(self, span: int | str, steps_per_epoch: float) -> int:
        """Return a patience or a cooldown in observations: the fewest that take as long."""
        if isinstance(span, int):
            return span
        number = epochs_of(span) / self.observation_epochs(steps_per_epoch)
        return math.ceil(number - 1e-9)  # a quotient of floats may be a little too large

    def counted(self, steps_per_epoch: float) -> "PlateauSettings":
        """Return these settings with patience and cooldown in observations."""
        spans = {"patience": self.patience, "cooldown": self.cooldown}
        return self.model_copy(
            update={key: self.count(span, steps_per_epoch) for key, span in spans.items()}
        )

    def describe_observation(self) -> str:
        """Return what one observation is, such as ``train loss, mean of 200 steps``."""
        what = f"{'1 - ' if self.metric == 'accuracy' else ''}{self.split} {self.metric}"
        if self.accumulation_size > 1:
            unit = "steps" if self.split == "train" else "epochs"
            what += f", mean of {self.accumulation_size} {unit}"
        return what if self.smooth == "none" else f"{what}, {self.smooth}"

    def problems(self) -> Iterator[str]:
        """Yield one sentence per combination of valid settings that cannot be used."""
        if self.rtol == 0 and self.atol == 0:
            yield "--rtol and --atol are both 0: one of them must be above 0"
        if self.stop_at_min_scale and self.min_scale == 0:
            yield "--stop-at-min-scale needs a --min-scale above 0, such as --min-scale 0.01"


class RunSettings(Table):
    epochs: int = declare(
        50, "Passes over the training images", on_resume="grow", ge=1, le=1_000_000
    )
    seed: SeedTuple = declare(
        Seeds((0,)),
        "Seed of the parameters and of the order of the images; several seeds train one replica "
        "each, in one program and one run folder",
        values_text=f"a whole number from 0 to {LARGEST_SEED:,}, or up to {MOST_SEEDS:,} "
        "different ones like 0-7 or 0,2,5",
        is_traced=True,
    )
    name: FolderName | None = _free_setting(
        None,
        "Name of the run, appended to the time in its folder's name",
        default_text="the mode, or the schedule",
        values_text="a folder name of up to 50 characters, with no slash and no dot in front",
        per_process=True,
    )
    runs_dir: FolderPath = _free_setting(
        Path("runs"), "Folder of the run folders", per_process=True
    )
    threads: int | None = declare(
        None,
        "Threads of XLA on the CPU; the last bits of a result depend on them",
        default_text="the available cores",
        variable="NPROC",
        affects_results=False,
        per_process=True,
        ge=1,
        le=1024,
    )
    devices: OptionalCount = declare(
        None,
        "Devices used by each process; they share the replicas, or the images of each batch",
        default_text="all, or of a CPU as many as divide the seeds",
        on_resume="local",
        affects_results=False,
    )
    max_time: Duration = _free_setting(
        None,
        "Stop after the last epoch that fits in this time from the start of the command, and after "
        "at least one; resume continues, with the whole time again",
        default_text="none",
        values_text="a time above 0 such as 90s, 30m, 1.5h or 2h30m, a number of seconds, or none",
    )
    quiet: bool = _free_setting(False, "Print only the run's folder", per_process=True)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each replica of the run, replica 0 first."""
        return self.seed

    @property
    def max_seconds(self) -> float:
        """``max_time`` in seconds; infinite without one."""
        return math.inf if self.max_time is None else _seconds_of(self.max_time)


class ClusterSettings(Table):
    """How a process finds the others; a run can be resumed on another cluster, or without one."""

    coordinator: str | None = _free_setting(
        None,
        "Address at which process 0 accepts the others",
        default_text="from SLURM, Open MPI or Kubernetes, else none",
        values_text="HOST:PORT of process 0",
        pattern=r"^[^\s/]+:\d{1,5}$",
    )
    num_processes: OptionalCount = _free_setting(
        None,
        "Processes that train together; 1 trains without the others, also within a cluster",
        default_text="as for --coordinator",
    )
    process_id: int | None = _free_setting(
        None,
        "Number of this process, from 0; process 0 prints and writes",
        default_text="as for --coordinator",
        per_process=True,
        ge=0,
        le=1_000_000,
    )
    join_timeout: int = _free_setting(
        120, "Seconds to wait until all processes have joined", ge=1, le=86_400
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence per combination of valid settings that cannot be used."""
        flags = ("--coordinator", "--num-processes", "--process-id")
        values = (self.coordinator, self.num_processes, self.process_id)
        missing = [flag for flag, value in zip(flags, values, strict=True) if value is None]
        is_single = self.num_processes == 1 and len(missing) == 2
        if missing and len(missing) < len(flags) and not is_single:
            yield f"{', '.join(flags)} belong together: {' and '.join(missing)} is missing"
        number, count = self.process_id, self.num_processes
        if number is not None and count is not None and number >= count:
            problem = f"--process-id {number} must be below --num-processes {count}"
            yield f"{problem}: processes are numbered from 0"


class Settings(Table):
    """All settings of one run."""

    data: DataSettings = Field(default_factory=DataSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = Field(default_factory=OptimizerSettings)
    plateau: PlateauSettings = Field(default_factory=PlateauSettings)
    run: RunSettings = Field(default_factory=RunSettings)
    cluster: ClusterSettings = Field(default_factory=ClusterSettings)

    @property
    def schedule_name(self) -> str:
        """The mode of the plateau rule, or the name of another schedule."""
        schedule = self.optimizer.schedule
        return self.plateau.mode if schedule == "plateau" else schedule

    def early_stop_problems(self, patience: int | str) -> Iterator[str]:
        """Yield what is wrong with the early stop for a patience in observations.

        A patience in epochs is compared when the number of steps in an epoch is known.
        """
        stop, is_used = self.plateau.early_stop, self.optimizer.schedule == "plateau"
        if stop is not None and is_used and isinstance(patience, int) and stop <= patience:
            yield (
                f"--early-stop {stop} must be larger than --patience {patience}: otherwise the run "
                "ends before the rate drops"
            )

    def problems(self) -> Iterator[str]:
        """Yield one sentence per combination of valid settings that cannot be used."""
        yield from self.plateau.problems()
        yield from self.early_stop_problems(self.plateau.patience)
        if self.optimizer.warmup_epochs >= self.run.epochs:
            problem = f"--warmup-epochs {self.optimizer.warmup_epochs:g} must be below"
            yield f"{problem} --epochs {self.run.epochs}"
        if self.plateau.split == "val" and not self.data.may_have_val:
            yield f"--mode {self.plateau.mode} needs held-out images: add --val-fraction 0.1"
        model = self.model
        if model.model == "mlp" and model.arguments:
            yield f"--model-args {model.model_args} is not for mlp: it takes --hidden-sizes"
        if model.model != "mlp" and model.hidden_sizes != ModelSettings().hidden_sizes:
            yield f"--hidden-sizes is for mlp: --model {model.model} takes --model-args"
        if self.data.test_fraction > 0 and not self.data.is_custom:
            problem = f"--test-fraction {self.data.test_fraction:g} has no meaning for"
            yield f"{problem} {self.data.dataset}: it has test images of its own"
        yield from self.cluster.problems()
        optimizer = self.optimizer
        weight_decay, momentum = optimizer.weight_decay, optimizer.momentum
        is_schedule_free = optimizer.schedule == "schedule-free"
        for option, is_used, takers in (
            (f"--weight-decay {weight_decay:g}", weight_decay > 0, DEFAULT_WEIGHT_DECAY),
            (f"--momentum {momentum:g}", momentum > 0, DEFAULT_MOMENTUM),
            ("--schedule schedule-free", is_schedule_free, SCHEDULE_FREE),
        ):
            if is_used and optimizer.optimizer not in takers:
                problem = f"{option} has no meaning for {optimizer.optimizer}"
                yield f"{problem}: it is for {', '.join(takers)}"
        if is_schedule_free and optimizer.optimizer == "sgd" and momentum == 0:
            yield "--schedule schedule-free needs a momentum: add --momentum 0.9"


SETTINGS = tuple(
    Setting(table, key, field, **cast(dict[str, Any], field.json_schema_extra))
    for table, info in Settings.model_fields.items()
    for key, field in cast(type[Table], info.annotation).model_fields.items()
)


# What a replay of the rule takes: not the metric, and not what a drop brings back.
RULE_KEYS = tuple(
    setting.key
    for setting in SETTINGS
    if (setting.table == "plateau" and setting.key not in ("mode", "on_drop"))
    or setting.key.startswith("warmup_")
)


def as_text(value: object) -> str:
    """Write a value as a user would type it after its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple) and not isinstance(value, Seeds):
        return ",".join(map(str, value))
    return str(value)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the known word closest to a mistyped one, if one is close."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(word).lower(), by_lower, n=1)
    return f" (did you mean {by_lower[matches[0]]}?)" if matches else ""
