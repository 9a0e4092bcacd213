"""Train neural networks with reduce-on-plateau, and see when, why, and whether it helps.

The names below are imported when one of them is first used: the import of jax takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plateau_train import errors
    from plateau_train.api.python import (
        Comparison,
        Evaluation,
        Predictions,
        Replay,
        Run,
        Runs,
        Sweep,
        compare,
        describe_data,
        load,
        load_sweep,
        prepare_data,
        replay,
        resolve_settings,
        runs,
        sweep,
        train,
    )
    from plateau_train.numerics.plateau import reduce_on_plateau
    from plateau_train.report.explanation import explain, find_ending

    __version__: str

__all__ = [
    "Comparison", "Evaluation", "Predictions", "Replay", "Run", "Runs", "Sweep", "compare",
    "describe_data", "errors", "explain", "find_ending", "load", "load_sweep", "prepare_data",
    "reduce_on_plateau", "replay", "resolve_settings", "runs", "sweep", "train",
]  # fmt: skip
_HOMES = {
    "explain": "report.explanation",
    "find_ending": "report.explanation",
    "reduce_on_plateau": "numerics.plateau",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("plateau-train")
    if name == "errors":
        return import_module("plateau_train.errors")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'api.python')}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"]
