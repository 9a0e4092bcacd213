"""The errors that a user sees: message, hint, exit code.

Only these are shown to the user as one line and a hint. Everything else is a bug and keeps its
traceback: a plain ``ValueError`` is never turned into one of these.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def _program() -> str:
    """Return how the program was started, so that hints can be typed as they are printed."""
    typed = sys.argv[0] if sys.argv else ""
    if variable := os.environ.get("PLATEAU_TRAIN_PROGRAM"):  # set by scripts/plateau-train
        return shlex.quote(variable)
    if Path(typed).parts[-2:] == ("plateau_train", "__main__.py"):
        return f"{shlex.quote(sys.orig_argv[0])} -m plateau_train"
    if os.path.basename(typed) == "plateau-train" and shutil.which("plateau-train") != typed:
        return shlex.quote(typed)
    return "plateau-train"


PROGRAM = _program()


class PlateauTrainError(Exception):
    """A failure that the user can fix.

    ``problems`` are sentences that say what is wrong and with which values, without a full stop;
    each line of ``hint`` says what to do or type next.
    """

    exit_code: int

    def __init_subclass__(cls, exit_code: int | None = None) -> None:
        if exit_code is not None:
            cls.exit_code = exit_code

    def __init__(self, *problems: str, hint: str) -> None:
        super().__init__(*problems)
        self.problems = problems
        self.hint = hint

    def reword(self, replace: Callable[[str], str]) -> None:
        """Replace words of the problems and of the hints, line by line."""
        self.problems = self.args = tuple(map(replace, self.problems))
        self.hint = "\n".join(map(replace, self.hint.split("\n")))

    def __str__(self) -> str:
        """Return the problems and the hints, a line each, as a traceback shows them."""
        hints = (f"hint: {hint}" for hint in self.hint.split("\n"))
        return "\n".join((*self.problems, *hints))


class ConfigError(PlateauTrainError, exit_code=2):
    """A flag, a TOML file or a combination of settings that cannot be used."""


class ForeignConfigError(ConfigError):
    """A TOML file that another version has written."""


class ChangedSettingsError(ConfigError):
    """Settings that a run cannot change; ``table`` has its heads, then a row for each setting."""

    def __init__(self, *problems: str, hint: str, table: Sequence[Sequence[str]]) -> None:
        super().__init__(*problems, hint=hint)
        self.table = table

    def reword(self, replace: Callable[[str], str]) -> None:
        super().reword(replace)
        (_, *rows) = self.table
        changes = (
            f"{replace(name)}: the run has {begun}, not {given}, and {replace(why)}"
            for name, begun, given, why in rows
        )
        self.problems = self.args = (*self.problems, *changes)


class DataError(PlateauTrainError, exit_code=3):
    """A data set that does not exist, is damaged, or is of the wrong kind."""


class DataUnavailableError(DataError):
    """A data set that is not prepared and cannot be downloaded now."""


class RunError(PlateauTrainError, exit_code=4):
    """A run folder or a file in it that cannot be used."""


class ForeignRunError(RunError):
    """A file of a run that is not damaged, and that another version has written."""


class StorageError(PlateauTrainError, exit_code=5):
    """A disk or a permission that refused a write."""


class PictureError(PlateauTrainError, exit_code=5):
    """A picture that could not be drawn or written, of a run that is done or stopped."""


class OutOfMemoryError(PlateauTrainError, exit_code=5):
    """A system that refused memory."""


class NonFiniteLossError(PlateauTrainError, exit_code=6):
    """A loss that became NaN or infinite."""


class BusyRunError(PlateauTrainError, exit_code=7):
    """A run that another process has locked."""


class ClusterError(PlateauTrainError, exit_code=8):
    """Another process of the same run that cannot be reached, or that ended."""


class InterruptedRunError(PlateauTrainError):
    """A program that a signal ended; the exit code is 128 plus the signal's number.

    ``run`` is the folder of the run, if one was trained and can be drawn.
    """

    run: Path | None = None

    def __init__(self, *problems: str, hint: str, signal_number: int) -> None:
        super().__init__(*problems, hint=hint)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
