"""The numerics of training: model, plateau rule, schedules, one step, and the axis of replicas.

Pure functions of arrays: no files, no clock, no terminal, no environment. Imports config, errors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plateau_train.numerics.model import Network


def from_nnx(make: Any, **options: Any) -> "Network":
    """Adapt a function that makes a Flax NNX module; see ``nnx_modules``."""
    return import_module("plateau_train.numerics.nnx_modules").from_nnx(make, **options)
