"""Decode a data set into the cache: ``python -m plateau_train.data SETTINGS``, which are JSON.

The parent process holds the other end of standard input. When the parent ends, it is closed, and
this process ends as well.
"""

import os
import sys
import threading

from plateau_train import config, data


def main() -> None:
    """Decode the data set; the parent repeats what fails here, and reports it."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    data.decode(config.DataSettings.model_validate_json(sys.argv[1]))
    os._exit(0)  # without the time that tensorflow takes to shut down


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
