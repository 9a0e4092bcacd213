"""The keyword arguments of functions in Python: their types, and their part of a signature.

Defaults, ranges and meanings are those of the settings, in ``config`` and docs/settings.md.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Any, ParamSpec, TypedDict, TypeVar

from plateau_train import config, data
from plateau_train.config import (
    Augmentation,
    Mode,
    OnDrop,
    OptimizerName,
    Precision,
    RawValue,
    Schedule,
    Setting,
)
from plateau_train.errors import ConfigError, PlateauTrainError

P = ParamSpec("P")
T = TypeVar("T")

PathLike = str | Path
# NumPy arrays, or what becomes one: uint8 images and one label per image, as (x_train, y_train,
# x_test, y_test) or (x_train, y_train, x_val, y_val, x_test, y_test).
Arrays = tuple[Any, ...]
Seeds = int | Iterable[int] | str


def as_path(path: PathLike) -> Path:
    """Return a path with the home folder for ``~``; raises ``ConfigError`` for what is none."""
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"a path must be text, got {path!r}", hint="give text or a pathlib.Path")
    return config.expand_home(Path(path))


class SettingOptions(TypedDict, total=False):
    """A value for each setting."""

    dataset: PathLike | Arrays
    data_dir: PathLike
    cache_dir: PathLike
    batch_size: int
    val_fraction: float
    test_fraction: float
    train_examples: int | None
    test_examples: int | None
    augment: Augmentation
    model: str
    model_args: Mapping[str, Any] | str
    hidden_sizes: Sequence[int]
    precision: Precision
    optimizer: OptimizerName
    learning_rate: float
    schedule: Schedule
    step_epochs: int
    warmup_epochs: float
    warmup_start: float
    weight_decay: float
    momentum: float
    mode: Mode
    patience: int | str
    cooldown: int | str
    factor: float
    rtol: float
    atol: float
    accumulation_size: int
    smooth: str
    min_scale: float
    max_drops: int | None
    stop_at_min_scale: bool
    early_stop: int | None
    on_drop: OnDrop
    epochs: int
    seed: Seeds
    name: str | None
    runs_dir: PathLike
    threads: int | None
    devices: int | None
    max_time: str | float | None
    quiet: bool


class SweepOptions(TypedDict, total=False):
    """A value for each setting, or the values of a sweep."""

    dataset: PathLike | Arrays | Sequence[PathLike]
    data_dir: PathLike
    cache_dir: PathLike
    batch_size: int | Sequence[int]
    val_fraction: float | Sequence[float]
    test_fraction: float | Sequence[float]
    train_examples: int | Sequence[int] | None
    test_examples: int | Sequence[int] | None
    augment: Augmentation | Sequence[Augmentation]
    model: str | Sequence[str]
    model_args: Mapping[str, Any] | str | Sequence[Mapping[str, Any]]
    hidden_sizes: Sequence[int] | Sequence[Sequence[int]]
    precision: Precision | Sequence[Precision]
    optimizer: OptimizerName | Sequence[OptimizerName]
    learning_rate: float | Sequence[float]
    schedule: Schedule | Sequence[Schedule]
    step_epochs: int | Sequence[int]
    warmup_epochs: float | Sequence[float]
    warmup_start: float | Sequence[float]
    weight_decay: float | Sequence[float]
    momentum: float | Sequence[float]
    mode: Mode | Sequence[Mode]
    patience: int | str | Sequence[int | str]
    cooldown: int | str | Sequence[int | str]
    factor: float | Sequence[float]
    rtol: float | Sequence[float]
    atol: float | Sequence[float]
    accumulation_size: int | Sequence[int]
    smooth: str | Sequence[str]
    min_scale: float | Sequence[float]
    max_drops: int | Sequence[int] | None
    stop_at_min_scale: bool | Sequence[bool]
    early_stop: int | Sequence[int] | None
    on_drop: OnDrop | Sequence[OnDrop]
    epochs: int | Sequence[int]
    seed: Seeds
    name: str | None
    runs_dir: PathLike
    threads: int | None
    devices: int | None
    max_time: str | float | None
    quiet: bool


def read_settings(
    settings: Mapping[str, Any], known: Iterable[str] = config.ARGUMENTS
) -> dict[str, RawValue]:
    """Read arguments as ``config.read_arguments``; arrays are kept in memory, under a name.

    A ``pathlib.Path`` is a path also where the same text is a name. Raises ``ConfigError``, and
    ``DataError`` for arrays that cannot be used.
    """
    if settings.get("dataset") is None:
        return config.read_arguments(settings, known)
    dataset: Any = settings["dataset"]
    if hasattr(dataset, "shape"):  # one array, which is too few
        dataset = [dataset]
    if isinstance(dataset, list | tuple):
        is_named = any(isinstance(each, str | Path) for each in dataset)
        dataset = [*map(_as_text, dataset)] if is_named else data.keep_arrays(dataset)
    return config.read_arguments({**settings, "dataset": _as_text(dataset)}, known)


def _as_text(value: Any) -> Any:
    """Return a path as text that is not a name, and anything else as it is."""
    return str(as_path(value).absolute()) if isinstance(value, Path) else value


def for_python(
    settings: Sequence[Setting] = (),
    types: Mapping[str, Any] | None = None,
    *,
    has_defaults: bool = True,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make the errors of a function name arguments and not flags, and show its keywords.

    ``settings`` stand in its signature, which help and completion show, for its ``**`` argument,
    with the ``types`` of some of them if given. A default that is none, or follows from other
    settings, is None, and so is each if a call without them leaves them as they are.
    """
    keywords = [
        Parameter(
            each.key,
            Parameter.KEYWORD_ONLY,
            default=None if each.may_be_unset or not has_defaults else each.field.default,
            annotation=Parameter.empty if types is None else types[each.key],
        )
        for each in settings
        if types is None or each.key in types
    ]

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def call(*arguments: P.args, **options: P.kwargs) -> T:
            try:
                return function(*arguments, **options)
            except PlateauTrainError as error:
                error.reword(config.as_arguments)
                raise

        signature = inspect.signature(function)
        own = [
            each
            for each in signature.parameters.values()
            if not keywords or each.kind != Parameter.VAR_KEYWORD
        ]
        vars(call)["__signature__"] = signature.replace(parameters=[*own, *keywords])
        return call

    return decorate
