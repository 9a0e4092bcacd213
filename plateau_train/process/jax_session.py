"""The configuration of JAX that results depend on, for a block in the process of somebody else.

The command line fixes it once, by environment variables; see ``jax_variables``.
"""

import contextlib
import enum
import warnings
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from plateau_train.process.jax_variables import VALUES

CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_compilation_cache_max_size",
)


@contextlib.contextmanager
def own_configuration() -> Iterator[None]:
    """Fix the configuration of JAX for the block, and its cache of compiled programs.

    Both are the user's again after it, and so are the filters of warnings.
    """
    fixed = {name.lower(): text for name, text in VALUES.items()}
    before = {name: jax.config.values[name] for name in (*fixed, *CACHE, "jax_default_device")}
    try:  # an interruption may come between two of the updates
        for name, text in fixed.items():
            jax.config.update(name, _parse(text, before[name]))
        jax.config.update("jax_default_device", None)
        with warnings.catch_warnings():
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value.value if isinstance(value, enum.Enum) else value)
        if before[CACHE[0]] is None:  # JAX reads the name of its folder once
            compilation_cache.reset_cache()


def _parse(text: str, value: object) -> object:
    """Read the text of a variable as a value of the type that the configuration has."""
    if isinstance(value, bool):
        return text == "1"
    return type(value)(text) if isinstance(value, int | float) else text
