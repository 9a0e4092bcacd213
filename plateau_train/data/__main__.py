"""Decode a set for the cache: ``python -m plateau_train.data SETTINGS``, them as JSON.

The process that waits for it holds the other end of its standard input: when that is closed, it
ends as well.
"""

import os
import sys
import threading

from plateau_train import config, data


def main() -> None:
    """Decode the set; what fails here fails again in the process that waits, which tells it."""
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    data.decode(config.DataSettings.model_validate_json(sys.argv[1]))
    os._exit(0)  # without the time that tensorflow takes to shut down


def _end_with_the_other() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
