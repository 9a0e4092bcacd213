"""The types of the keyword arguments of ``train``, ``Run.resume`` and ``sweep``.

Defaults, ranges and meanings are those of the settings, in ``config`` and docs/settings.md.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypedDict

from plateau_train.config import Mode, OptimizerName, Precision, Schedule

PathLike = str | Path
Seeds = int | Iterable[int] | str


class SettingOptions(TypedDict, total=False):
    """A value for each setting."""

    dataset: str
    data_dir: PathLike
    cache_dir: PathLike
    batch_size: int
    val_fraction: float
    train_examples: int | None
    test_examples: int | None
    hidden_sizes: Sequence[int]
    precision: Precision
    optimizer: OptimizerName
    learning_rate: float
    schedule: Schedule
    step_epochs: int
    weight_decay: float
    momentum: float
    mode: Mode
    patience: int
    cooldown: int
    factor: float
    rtol: float
    atol: float
    accumulation_size: int
    min_scale: float
    epochs: int
    seed: Seeds
    name: str | None
    runs_dir: PathLike
    threads: int | None
    devices: int | None
    quiet: bool


class SweepOptions(TypedDict, total=False):
    """A value for each setting, or the values of a sweep."""

    dataset: str | Sequence[str]
    data_dir: PathLike
    cache_dir: PathLike
    batch_size: int | Sequence[int]
    val_fraction: float | Sequence[float]
    train_examples: int | Sequence[int] | None
    test_examples: int | Sequence[int] | None
    hidden_sizes: Sequence[int] | Sequence[Sequence[int]]
    precision: Precision | Sequence[Precision]
    optimizer: OptimizerName | Sequence[OptimizerName]
    learning_rate: float | Sequence[float]
    schedule: Schedule | Sequence[Schedule]
    step_epochs: int | Sequence[int]
    weight_decay: float | Sequence[float]
    momentum: float | Sequence[float]
    mode: Mode | Sequence[Mode]
    patience: int | Sequence[int]
    cooldown: int | Sequence[int]
    factor: float | Sequence[float]
    rtol: float | Sequence[float]
    atol: float | Sequence[float]
    accumulation_size: int | Sequence[int]
    min_scale: float | Sequence[float]
    epochs: int | Sequence[int]
    seed: Seeds
    name: str | None
    runs_dir: PathLike
    threads: int | None
    devices: int | None
    quiet: bool
