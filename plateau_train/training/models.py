"""The network of a run: a built-in one, or one from the user's own Python code.

Code is executed only if this process permits it: if the user names it, or has named the same file
with the same content before. The second is recorded in the user's cache, outside of run folders, so
a folder from somebody else cannot permit its own code.
"""

import contextlib
import difflib
import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import logging
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from plateau_train import config
from plateau_train.config import ModelSettings
from plateau_train.config.files import is_private, read_file
from plateau_train.errors import ConfigError, PlateauTrainError, RunError
from plateau_train.numerics import from_nnx
from plateau_train.numerics.adapters import from_functions, from_linen, is_linen, is_nnx
from plateau_train.numerics.architectures import CNN, MLP
from plateau_train.numerics.model import Network, check_network
from plateau_train.process import memory
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import Environment, ModelFacts, is_copy

log = logging.getLogger("plateau_train")

BUILT_IN = {"mlp": MLP, "cnn": CNN}

PERMITTED = "permitted-code"  # the folder in the cache with a record of each code
MOST_BYTES = 10_000_000  # of a file with source code
MOST_DIFFERENCES = 20  # lines shown of a changed source
MOST_NETWORKS = 64  # kept in a process that trains many

USE_HINT = (
    "a network takes float32 images [batch, height, width, channel] from 0 to 1 and, if it has an "
    "argument train, whether it is trained; PLATEAU_TRAIN_DEBUG=1 shows where it fails"
)

# The names in code that this process may execute.
_permitted: set[tuple[ModelFacts, str]] = set()


class Source(NamedTuple):
    """The code of a user's network, which is not executed yet."""

    facts: ModelFacts
    code: bytes


def find_source(settings: ModelSettings) -> Source | None:
    """Read the file of a user's network without executing it; None for a built-in one.

    Raises ``ConfigError`` where there is none.
    """
    where, _ = settings.place
    if not where:
        return None
    path = config.expand_home(Path(where)).absolute() if settings.is_file else _find_module(where)
    try:
        code = read_file(path, MOST_BYTES)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", hint="name the file: --model FILE.py:NAME"
        ) from error
    facts = ModelFacts(
        path=str(path),
        sha256=hashlib.sha256(code).hexdigest(),
        version="" if settings.is_file else _version_of(where),
    )
    return Source(facts, code)


def _find_module(name: str) -> Path:
    """Return the file of a module. No package is imported for it, as ``find_spec`` would do."""
    first, *parts = name.split(".")
    spec = None
    with contextlib.suppress(ValueError, ImportError):  # such as __main__
        spec = importlib.util.find_spec(first)
    for part in parts:
        search = spec.submodule_search_locations if spec else None
        first = f"{first}.{part}"
        spec = importlib.machinery.PathFinder.find_spec(first, search) if search else None
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"there is no module {name}",
            hint="install its package in this environment, or name a file: --model FILE.py:NAME",
        )
    return Path(spec.origin)


def _version_of(module: str) -> str:
    """Return the version of the package that a module is in, or nothing where it has none."""
    top = module.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top, [])
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(set(names)))


def permit(settings: ModelSettings, cache_dir: Path, *, is_named: bool) -> None:
    """Permit this process to execute the code of a network that the user has named.

    Without ``is_named`` it must be code that the user has named before, as recorded in the cache
    of the user. Raises ``ConfigError`` otherwise.
    """
    source = find_source(settings)
    if source is None:
        return
    # The name as well: another function of the same code may do something else.
    text = "\n".join((source.facts.path, source.facts.sha256, settings.place[1]))
    cache_dir = config.expand_home(cache_dir)
    record = cache_dir / PERMITTED / hashlib.sha256(text.encode()).hexdigest()
    has_record = is_private(cache_dir) and is_private(record.parent)
    if not is_named and not (has_record and record.exists()):
        raise ConfigError(
            f"the network {settings.model} is code that you have not trained with in this form, "
            "and it is not executed",
            hint=f"read {source.facts.path}; if you trust it, add --model "
            f"{shlex.quote(settings.model)}",
        )
    _permitted.add((source.facts, settings.place[1]))
    if has_record:
        with contextlib.suppress(OSError):  # the user has to name the code again
            record.touch()


def is_permitted(settings: ModelSettings) -> bool:
    """Return whether this process may execute the code of a network."""
    source = find_source(settings)
    return source is None or (source.facts, settings.place[1]) in _permitted


def refuse_other_source(
    directory: RunDirectory, known: ModelFacts | None, settings: ModelSettings
) -> None:
    """Raise ``RunError`` where a network is not the one that a run began with."""
    now, (_, name) = find_source(settings), settings.place
    if known is None or now is None:
        return
    if (known.sha256, known.version) == (now.facts.sha256, now.facts.version):
        return
    problem = f"{now.facts.path} is not the code that {directory.path} was trained with"
    hint = f"use the code that the run keeps: --model {shlex.quote(f'{directory.model}:{name}')}"
    if not settings.is_file:
        hint = f"install what it was trained with, {known.version or 'which has no version'}"
    differences = _differences(directory, known, now)
    raise RunError(problem, *differences, hint=f"start a new run, or {hint}")


def require_copy(directory: RunDirectory, begun: Environment | None) -> None:
    """Raise ``RunError`` where a run does not have the code that it was trained with."""
    if begun is not None and begun.model is not None and not is_copy(directory.model, begun.model):
        raise RunError(
            f"{directory.model} is not the code that the run was trained with",
            hint=f"restore the file from a copy, such as {begun.model.path}",
        )


def _differences(directory: RunDirectory, known: ModelFacts, now: Source) -> Iterator[str]:
    """Yield the first lines that differ between the code of a run and the code that is here."""
    if not is_copy(directory.model, known):
        return
    codes = read_file(directory.model, MOST_BYTES), now.code
    before, after = (code.decode(errors="replace").splitlines() for code in codes)
    names = str(directory.model), now.facts.path
    lines = list(difflib.unified_diff(before, after, *names, lineterm="", n=0))
    yield from lines[:MOST_DIFFERENCES]
    if len(lines) > MOST_DIFFERENCES:
        yield f"... and {len(lines) - MOST_DIFFERENCES} more lines"


def load_network(
    settings: ModelSettings, num_classes: int, image_shape: tuple[int, int, int]
) -> Network:
    """Return the network of a run; code of a user is executed only where it is permitted.

    Raises ``ConfigError`` for code that does not make a network for these images and classes.
    """
    if not is_permitted(settings):
        raise AssertionError(f"{settings.model} would be executed without a call of permit")
    hashable: Any = settings
    return _load(hashable, find_source(settings), num_classes, image_shape)


@lru_cache(MOST_NETWORKS)  # the same network is the same object, and is compiled once
def _load(
    settings: ModelSettings,
    source: Source | None,
    num_classes: int,
    image_shape: tuple[int, int, int],
) -> Network:
    given = {"num_classes": num_classes, "image_shape": image_shape}
    adapted: dict[str, Any] = {"num_classes": num_classes, "precision": settings.precision}
    if source is None:
        arguments = settings.arguments
        if settings.model == "mlp":
            arguments["hidden_sizes"] = settings.hidden_sizes
        with explained(settings):
            module = _bind(BUILT_IN[settings.model], settings, given | arguments)()
            network = from_linen(module, title=module.describe(image_shape), **adapted)
            check_network(network, image_shape)
        return network
    with explained(settings, hint="PLATEAU_TRAIN_DEBUG=1 shows where it fails"):
        found = _find_name(_execute(settings, source), settings)
    with explained(settings):
        adapted["title"] = _title(settings, source)
        network = _adapt(found, settings, given, adapted, image_shape)
        check_network(network, image_shape)
    return network


def _title(settings: ModelSettings, source: Source) -> str:
    where, name = settings.place
    shown = Path(source.facts.path).name if settings.is_file else where
    return f"{name} of {shown}" + f" with {settings.model_args}" * (settings.model_args != "{}")


def _adapt(
    found: Any,
    settings: ModelSettings,
    given: dict[str, Any],
    adapted: dict[str, Any],
    image_shape: tuple[int, int, int],
) -> Network:
    """Adapt what a name stands for: a module, a class or function that makes one, or functions."""
    is_made = is_linen(found) or not callable(found)
    if not isinstance(found, type) and is_nnx(type(found)):
        raise ConfigError(
            f"{adapted['title']} is an NNX module that has its parameters already",
            hint="name its class, or a function with an argument rngs: each seed needs its own",
        )
    if is_made and settings.arguments:
        raise ConfigError(
            f"{adapted['title']} is an object: it takes no --model-args",
            hint="name its class, or a function that makes it",
        )
    make: Callable[..., Any] = lambda: found  # noqa: E731
    if not is_made:
        make = _bind(found, settings, given | settings.arguments)
    if not is_made and "rngs" in _parameters(found):
        return from_nnx(make, **adapted)
    made = make()
    if is_linen(made):
        return from_linen(made, **adapted)
    if all(callable(getattr(made, name, None)) for name in ("init", "apply")):
        return from_functions(made, image_shape=image_shape, **adapted)
    raise ConfigError(
        f"{adapted['title']} is {_describe(made)}, which is no network",
        hint="name a Flax module, or an object with init(key, images) and apply(variables, images)",
    )


def _describe(value: object) -> str:
    kind = type(value).__name__
    return f"a function that returns {kind}" if callable(value) else f"of type {kind}"


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function or of a class by name."""
    if isinstance(function, type) and is_nnx(function):
        function = function.__init__  # the class itself is called by its metaclass
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if name != "self"}


def _bind(
    function: Callable[..., Any], settings: ModelSettings, arguments: dict[str, Any]
) -> Callable[..., Any]:
    """Return a function with the user's arguments and, of the others, those that it has.

    Raises ``ConfigError`` for an argument that it does not have, and for one that is missing.
    """
    parameters = _parameters(function)
    takes_any = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    own = [
        name
        for name, each in parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        if name not in ("rngs", "parent", "name")  # those of Flax
    ]
    unknown = [name for name in settings.arguments if name not in own]
    name = settings.place[1] or settings.model
    if unknown and not takes_any:
        raise ConfigError(
            f"{name} has no argument {unknown[0]}{config.did_you_mean(unknown[0], own)}",
            hint=f"its arguments are {', '.join(own) or 'none'}",
        )
    missing = [
        name
        for name in own
        if name not in arguments and parameters[name].default is inspect.Parameter.empty
    ]
    if missing:
        raise ConfigError(
            f"{name} needs the argument {', '.join(missing)}",
            hint=f"""give it a default, or add --model-args '{{"{missing[0]}": ...}}'""",
        )
    used = {
        key: _as_tuple(value)
        for key, value in arguments.items()
        if key in own or key in settings.arguments
    }

    def make(**options: Any) -> Any:
        return function(**used, **options)

    return make


def _as_tuple(value: Any) -> Any:
    """Return lists as tuples, which are hashable."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _execute(settings: ModelSettings, source: Source) -> ModuleType:
    """Import the code of a network; a file as a module of its own, beside its neighbours."""
    where, _ = settings.place
    if not settings.is_file:
        return importlib.import_module(where)
    path = Path(source.facts.path)
    name = f"plateau_train_model_{source.facts.sha256}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module  # dataclasses look their module up
        sys.path.insert(0, str(path.parent))
        try:
            # The bytes that were verified, not a file that may have changed since.
            exec(compile(source.code, str(path), "exec"), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            sys.path.remove(str(path.parent))
    return sys.modules[name]


def _find_name(module: ModuleType, settings: ModelSettings) -> Any:
    where, name = settings.place
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = config.did_you_mean(part, vars(found))
            raise ConfigError(
                f"{where} has no {part}{near}", hint="write --model FILE.py:NAME with its name"
            )
        found = getattr(found, part)
    return found


@contextlib.contextmanager
def explained(settings: ModelSettings, hint: str = USE_HINT) -> Iterator[None]:
    """Raise an error of a network as ``ConfigError`` with its place in the code of the user.

    ``hint`` is for an error that has none of its own.
    """
    try:
        with memory.report_exhaustion():
            yield
    except PlateauTrainError:
        raise
    except (Exception, SystemExit) as error:  # any code may raise any error
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        first, *_ = (*text.splitlines(), "")
        problem = f"{type(error).__name__}: {first}" if first else type(error).__name__
        place, source = "", find_source(settings)
        if source is not None:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [each.lineno for each in frames if each.filename == source.facts.path]
            if isinstance(error, SyntaxError) and error.filename == source.facts.path:
                lines = [error.lineno] if error.lineno else []
            place = f" in line {lines[-1]} of {source.facts.path}" if lines else ""
        raise ConfigError(
            f"the network {settings.model} fails{place}: {problem}", hint=_hint(error) or hint
        ) from error


def _hint(error: BaseException) -> str:
    """Return what helps against some errors of Python and Flax, or an empty text."""
    text, name = str(error), type(error).__name__
    if isinstance(error, ModuleNotFoundError):
        return "install it in this environment"
    if isinstance(error, SystemExit):
        return 'write below if __name__ == "__main__": what is only for a script'
    if name == "InvalidRngError":
        return (
            "random numbers are there in training only, under the name dropout; give __call__ an "
            "argument train, which is False in evaluation"
        )
    if name == "ModifyScopeVariableError" or "must be passed to the constructor" in text:
        return (
            "give __call__ an argument train, which is False in evaluation, and pass on "
            "use_running_average=not train or deterministic=not train"
        )
    return ""
