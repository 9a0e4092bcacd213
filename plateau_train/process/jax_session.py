"""The configuration of JAX that results depend on, for a block in the process of somebody else.

The command line fixes it once, by environment variables; see ``jax_variables``.
"""

import contextlib
import enum
import gc
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
from jax.experimental.compilation_cache import compilation_cache

from plateau_train.errors import ConfigError
from plateau_train.process.jax_variables import VALUES
from plateau_train.process.memory import GARBAGE_THRESHOLD

CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_compilation_cache_max_size",
)


@contextlib.contextmanager
def own_configuration() -> Iterator[None]:
    """Fix the configuration of JAX for the block, and its cache of compiled programs.

    Both are the user's again after it, and so are the filters of warnings. Garbage is collected
    less often: JAX is called at each collection, where Python ignores an interruption.
    """
    texts = {name.lower(): text for name, text in VALUES.items()}
    names = (*texts, *CACHE, "jax_default_device")
    with ThreadPoolExecutor(1) as other_thread:  # where no context manager of the caller applies
        before = other_thread.submit(_read, names).result()
    fixed = {name: _parse(text, before[name]) for name, text in texts.items()}
    fixed["jax_default_device"] = None
    _refuse_contexts(before, fixed)
    thresholds = gc.get_threshold()
    try:  # an interruption may come between two of the updates
        gc.set_threshold(max(GARBAGE_THRESHOLD, thresholds[0]), *thresholds[1:])
        for name, value in fixed.items():
            jax.config.update(name, value)
        with warnings.catch_warnings():
            yield
    finally:
        gc.set_threshold(*thresholds)
        for name, value in before.items():
            jax.config.update(name, value)
        if before[CACHE[0]] is None:  # JAX reads the name of its folder once
            compilation_cache.reset_cache()


def _read(names: Iterable[str]) -> dict[str, object]:
    """Return values of the configuration that ``jax.config.update`` accepts."""
    values = {name: jax.config.values[name] for name in names}
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in values.items()
    }


def _refuse_contexts(before: Mapping[str, object], fixed: Mapping[str, object]) -> None:
    """Raise ``ConfigError`` where a context manager outranks a value that is fixed.

    Such as ``with jax.enable_x64(True):``.
    """
    for name, value in _read(fixed).items():
        if value not in (before[name], fixed[name]):
            raise ConfigError(
                f"a context manager of JAX sets {name} to {value}, and results depend on it",
                hint="call this outside of the context",
            )


def _parse(text: str, value: object) -> object:
    """Read the text of a variable as a value of the type that the configuration has."""
    if isinstance(value, bool):
        return text == "1"
    return type(value)(text) if isinstance(value, int | float) else text
