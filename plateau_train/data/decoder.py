"""Decode a data set in a process of its own.

The parent process reads the result from a pipe, and has the other end of standard input. When the
parent ends, that is closed, and this process ends as well.
"""

import os
import pickle
import sys
import threading
import traceback
from functools import partial
from pathlib import Path

from plateau_train.data import tfds
from plateau_train.errors import PlateauTrainError


def main(descriptor: str, name: str, data_dir: str) -> None:
    """Write the data set, or a function that returns the error, to a descriptor as a pickle."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        result = tfds.Source(name, Path(data_dir)).decode()
    except PlateauTrainError as error:
        result = partial(type(error), *error.problems, hint=error.hint)
    except Exception:  # a bug, or a library that this version does not work with
        result = partial(RuntimeError, traceback.format_exc())
    with open(int(descriptor), "wb") as output:
        pickle.dump(result, output, protocol=5)  # which copies no array
    os._exit(0)  # without the time that tensorflow takes to shut down


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
