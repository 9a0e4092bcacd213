"""The functions of ``import plateau_train``.

They take settings as keyword arguments, with the names, defaults and checks of the command line.
Nothing of the process is changed: not its signals, streams, environment variables or JAX
configuration.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from plateau_train import config, data
from plateau_train.api import comparison, listing, replays, sweeps, training
from plateau_train.api.comparison import Comparison
from plateau_train.api.evaluation import Evaluation
from plateau_train.api.options import (
    PathLike,
    SettingOptions,
    SweepOptions,
    as_path,
    for_python,
    read_settings,
)
from plateau_train.api.predictions import Predictions
from plateau_train.api.replays import RULE, Replay
from plateau_train.api.runs import Run, Runs
from plateau_train.api.sweeps import Sweep
from plateau_train.config import SETTINGS
from plateau_train.data.csv_files import parse_number
from plateau_train.errors import ConfigError
from plateau_train.process import clock
from plateau_train.process.jax_session import own_configuration
from plateau_train.report.notebook import make_report
from plateau_train.run.environment import require_open_files
from plateau_train.run.reader import Run as StoredRun
from plateau_train.training.devices import require_threads

__all__ = [
    "Comparison", "Evaluation", "Predictions", "Replay", "Run", "Runs", "Sweep", "compare",
    "describe_data", "load", "load_sweep", "prepare_data", "replay", "resolve_settings", "runs",
    "sweep", "train",
]  # fmt: skip


PREPARED = tuple(each for each in SETTINGS if each.key in ("dataset", "data_dir", "cache_dir"))
DESCRIBED = tuple(each for each in SETTINGS if each in PREPARED or each.key == "test_fraction")


@for_python(SETTINGS, SettingOptions.__annotations__)
def resolve_settings(
    *, config_file: PathLike | None = None, **settings: Unpack[SettingOptions]
) -> dict[str, Any]:
    """Return all settings that ``train`` would use, by name; raises ``ConfigError`` as it does."""
    given = read_settings(settings)
    return config.by_name(config.resolve(given, file=_optional(config_file)).settings)


@for_python(PREPARED, SettingOptions.__annotations__)
def prepare_data(*, originals: PathLike | None = None, **settings: Any) -> str:
    """Prepare a data set, and say what was done.

    ``originals`` is the folder of its original files; without it they are downloaded. Raises
    ``DataError`` where that is impossible or a file is damaged.
    """
    return data.prepare(_data_settings(settings, PREPARED), _optional(originals))


@for_python(DESCRIBED, SettingOptions.__annotations__)
def describe_data(**settings: Any) -> dict[str, str]:
    """Describe a prepared data set: its images, classes and pixels; raises ``DataError``."""
    return data.describe(_data_settings(settings, DESCRIBED))


@for_python(SETTINGS, SettingOptions.__annotations__)
def train(*, config_file: PathLike | None = None, **settings: Unpack[SettingOptions]) -> Run:
    """Train a network with reduce-on-plateau in a new run folder, and return the run.

    The settings are those of docs/settings.md; None stands for the default. They outrank those of a
    TOML file. ``dataset`` may also be arrays: (x_train, y_train, x_test, y_test), or the same with
    x_val and y_val after y_train. They are kept in memory until others are given.

    In a notebook a bar shows the progress; elsewhere each epoch is one line. With ``quiet=True``
    only warnings are shown. After an interruption ``load().resume()`` continues the run. Raises
    ``ConfigError`` for settings that cannot be used, ``DataError`` for data that cannot, and
    ``NonFiniteLossError`` when no seed is finite any more.
    """
    clock.start()
    resolved = config.resolve(read_settings(settings), file=_optional(config_file))
    report = make_report(is_quiet=resolved.settings.run.quiet)
    with own_configuration():
        folder = training.train(resolved, require_threads, report)
    assert folder is not None  # in the only process
    return Run(StoredRun(folder))


@for_python()
def load(path: PathLike = "runs/latest") -> Run:
    """Open a run folder; raises ``RunError`` for one that is not a run."""
    return Run(StoredRun.open(as_path(path)))


@for_python()
def runs(folder: PathLike = "runs") -> Runs:
    """List the runs of a folder, or of a sweep; there are none where there is no such folder."""
    return Runs(listing.list_runs(as_path(folder)))


@for_python()
def compare(
    *runs: Run | Sweep | PathLike, level: float | None = None, pool: bool = False
) -> Comparison:
    """Compare runs with the first one, with 95 % confidence intervals over their seeds.

    A sweep stands for its runs. ``level`` is a test accuracy: the first epoch that reaches it is
    reported; by default it is the highest that every seed reaches. With ``pool=True``, runs that
    differ in their seed alone are replicas of one run. Raises ``ConfigError`` for fewer than two
    runs, and for two of the same seed that are to be one.
    """
    return comparison.compare([_path_of(run) for run in runs], level=level, pool=pool)


@for_python(SETTINGS, SweepOptions.__annotations__)
def sweep(
    *,
    metric: str | None = None,
    config_file: PathLike | None = None,
    **settings: Unpack[SweepOptions],
) -> Sweep:
    """Train every combination of the settings that are lists, each with every seed.

    ``metric`` is the one of the last epoch to sort by, such as "test-loss"; the default is the
    accuracy on held-out images, else on the test images. Runs that differ only in learning rate,
    patience, cooldown, min_scale, max_drops or early_stop are trained in one program. Raises as
    ``train``.
    """
    clock.start()
    cells = config.resolve_sweep(read_settings(settings), file=_optional(config_file))
    own = cells.cells[0].settings.run
    report = make_report(is_quiet=own.quiet, is_sweep=True)
    with own_configuration():
        require_threads(own.threads)
        require_open_files(len(cells.cells))
        return sweeps.start(cells, metric, report, lambda _: None)


@for_python()
def load_sweep(path: PathLike) -> Sweep:
    """Open the folder of a sweep; raises ``RunError`` for another folder."""
    return sweeps.read(as_path(path))


@for_python(tuple(RULE.values()))
def replay(
    values: Iterable[float],
    *,
    compare: str | Sequence[str] = (),
    from_torch: Mapping[str, Any] | None = None,
    from_keras: Mapping[str, Any] | None = None,
    learning_rate: float | None = None,
    **rule: Any,
) -> Replay:
    """Apply the plateau rule to values, lower is better, and explain each drop.

    ``from_torch`` and ``from_keras`` have the parameters of these libraries' rules, such as
    ``{"patience": 10, "threshold": 1e-3}``, in place of settings of the rule. Their ``min_lr``
    depends on ``learning_rate``. ``compare`` names libraries whose rules are applied as well:
    "optax", "torch", "keras". ``accumulation_size`` is 1 by default. Raises ``ConfigError`` for a
    value that is not a finite number.
    """
    if not isinstance(values, Iterable):
        raise ConfigError(f"values must be numbers, got {values!r}", hint="give a list of numbers")
    given = config.read_arguments({"learning_rate": learning_rate})
    rate = config.resolve(given).settings.optimizer.learning_rate
    overrides = replays.read_rule(rule, from_torch, from_keras, rate)
    numbers = [parse_number(str(value), f"value {n}") for n, value in enumerate(values, start=1)]
    series = replays.make_series("a list", "value", numbers, overrides)
    return replays.replay(series, replays.as_names(compare))


def _data_settings(
    settings: Mapping[str, Any], known: Sequence[config.Setting]
) -> config.DataSettings:
    given = read_settings(settings, [each.key for each in known])
    return config.resolve(given).settings.data


def _optional(path: PathLike | None) -> Path | None:
    return None if path is None else as_path(path)


def _path_of(run: Run | Sweep | PathLike) -> Path:
    if not isinstance(run, Run | Sweep | str | Path):
        raise ConfigError(
            f"compare takes runs, sweeps and paths, got {type(run).__name__}",
            hint="write compare(*runs) for a list of runs",
        )
    return run.path if isinstance(run, Run | Sweep) else as_path(run)
