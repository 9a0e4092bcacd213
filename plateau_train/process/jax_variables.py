"""The settings of JAX that results depend on, fixed whatever the user's environment has.

JAX reads these variables when it is imported, so they are set before that. ``JAX_PLATFORMS``, the
cache of compiled programs and the logs are the user's choice.
"""

import os

VALUES = {
    # Random numbers.
    "JAX_THREEFRY_PARTITIONABLE": "1",
    "JAX_RANDOM_SEED_OFFSET": "0",
    # Types, shapes and the precision of numbers.
    "JAX_ENABLE_X64": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
    "JAX_NUMPY_RANK_PROMOTION": "allow",
    # How programs are compiled and run.
    "JAX_DISABLE_JIT": "0",
    "JAX_SCAN3": "0",
    "JAX_NO_TRACING": "0",
    "JAX_NO_EXECUTION": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_OPTIMIZATION_LEVEL": "UNKNOWN",
    "JAX_EXEC_TIME_OPTIMIZATION_EFFORT": "0.0",
    # Checks that would end a program, some of them for what is correct here.
    "JAX_TRANSFER_GUARD": "allow",
    "JAX_TRANSFER_GUARD_DEVICE_TO_DEVICE": "allow",
    "JAX_TRANSFER_GUARD_DEVICE_TO_HOST": "allow",
    "JAX_TRANSFER_GUARD_HOST_TO_DEVICE": "allow",
    "JAX_DEBUG_NANS": "0",  # a loss that is not finite has an error of its own
    "JAX_DEBUG_INFS": "0",
    "JAX_ERROR_CHECKING_BEHAVIOR_NAN": "ignore",
    "JAX_ERROR_CHECKING_BEHAVIOR_DIVIDE": "ignore",
    "JAX_ERROR_CHECKING_BEHAVIOR_OOB": "ignore",
    "JAX_CHECK_TRACER_LEAKS": "0",
    "CHECK_VMA": "0",
}


def fix() -> None:
    """Set the variables; must be called before jax is imported."""
    os.environ.update(VALUES)
    os.environ.pop("JAX_DEFAULT_DEVICE", None)  # no value of it stands for the default
