"""Run the command line: ``python -m plateau_train`` or ``plateau-train``."""

from plateau_train.cli import main

if __name__ == "__main__":
    main()
