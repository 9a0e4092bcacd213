"""Train neural networks with reduce-on-plateau, and see when, why, and whether it helps.

The names below are imported when one of them is first used: jax alone takes a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plateau_train.api.python import (
        Comparison,
        Evaluation,
        Replay,
        Run,
        Runs,
        Sweep,
        compare,
        load,
        load_sweep,
        replay,
        runs,
        sweep,
        train,
    )

__all__ = [
    "Comparison", "Evaluation", "Replay", "Run", "Runs", "Sweep", "compare", "load", "load_sweep",
    "replay", "runs", "sweep", "train",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.api.python"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
