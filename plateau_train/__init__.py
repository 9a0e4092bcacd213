"""Train neural networks with reduce-on-plateau, and see when, why, and whether it helps."""

import importlib
from typing import Any

# Imported when they are first used: JAX is slow to import.
_MODULES = {
    "explain": "plateau_train.report.explanation",
    "reduce_on_plateau": "plateau_train.numerics.plateau",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
