"""Run the command line: ``python -m plateau_train`` or ``plateau-train``."""

import gc
import os
import sys
from typing import NoReturn

from plateau_train.errors import ClusterError, InterruptedRunError, PlateauTrainError
from plateau_train.process import signals, stdio

# Objects made, less those freed, after which Python looks for garbage; its own 700 are for programs
# that make cycles. What is imported here stays, and is not worth looking through at every start.
GARBAGE_THRESHOLD = 100_000


def main() -> NoReturn:
    """Run the command line and leave with the exit code of the design."""
    gc.set_threshold(GARBAGE_THRESHOLD)
    stdio.install()
    signals.install()
    try:
        from plateau_train import cli  # late: a signal is heard from here on

        code = cli.main()
        stdio.refuse_loss()
    except PlateauTrainError as error:
        _tell(error)
        code = error.exit_code
    gc.freeze()  # or Python would look through everything before it ends
    sys.exit(code)


def _tell(error: PlateauTrainError) -> None:
    if isinstance(error, InterruptedRunError):
        signals.lock_output()
    if os.environ.get("PLATEAU_TRAIN_DEBUG") == "1":
        import traceback

        traceback.print_exception(error)
    from plateau_train.report.console import show_error

    show_error(error)
    if isinstance(error, InterruptedRunError | ClusterError):
        signals.exit_now(error.exit_code)


if __name__ == "__main__":
    main()
