"""When the command began, or the function that Python called."""

import time

_began = time.monotonic()


def start() -> None:
    """Let the time of this command or call begin now."""
    global _began
    _began = time.monotonic()


def began() -> float:
    """Return when it began, in seconds of ``time.monotonic``."""
    return _began
