"""Run the command line: ``python -m plateau_train`` or ``plateau-train``."""

import gc
import os
import sys
import traceback
from importlib import import_module
from typing import NoReturn

from plateau_train.errors import ClusterError, InterruptedRunError, PlateauTrainError
from plateau_train.process import clock, jax_variables, memory, signals, stdio


def main() -> NoReturn:
    """Run the command line and exit with its exit code."""
    clock.start()
    gc.set_threshold(memory.GARBAGE_THRESHOLD)
    jax_variables.fix()
    stdio.install()
    signals.install()
    try:
        # Not at the top of the file: a signal is handled while it is imported.
        with memory.report_exhaustion():
            code = import_module("plateau_train.cli").main()
        stdio.require_written()
    except PlateauTrainError as error:
        _show(error)
        code = error.exit_code
    gc.freeze()  # without it Python would search all objects once more before it ends
    sys.exit(code)


def _show(error: PlateauTrainError) -> None:
    if isinstance(error, InterruptedRunError):
        signals.lock_output()
    if os.environ.get("PLATEAU_TRAIN_DEBUG") == "1":
        traceback.print_exception(error)
    import_module("plateau_train.report.console").print_error(error)
    if isinstance(error, InterruptedRunError) and error.run is not None:
        import_module("plateau_train.plots.background").start(error.run)
    if isinstance(error, InterruptedRunError | ClusterError):
        signals.exit_now(error.exit_code)


if __name__ == "__main__":
    main()
