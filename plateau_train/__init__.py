"""Train neural networks with reduce-on-plateau, and see when, why, and whether it helps.

The names below are imported when they are first used: jax takes a second, and so does matplotlib.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plateau_train.api.comparison import Comparison
    from plateau_train.api.evaluation import Evaluation
    from plateau_train.api.python import (
        Run,
        Runs,
        compare,
        load,
        load_sweep,
        replay,
        runs,
        sweep,
        train,
    )
    from plateau_train.api.replays import Replay
    from plateau_train.api.sweeps import Sweep

_MODULES = {
    "api.comparison": ("Comparison",),
    "api.evaluation": ("Evaluation",),
    "api.python": (
        "Run", "Runs", "compare", "load", "load_sweep", "replay", "runs", "sweep", "train",
    ),
    "api.replays": ("Replay",),
    "api.sweeps": ("Sweep",),
}  # fmt: skip
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = tuple(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
