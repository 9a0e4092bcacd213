"""Processes that run a module of this package."""

import sys
from pathlib import Path

_CODE = (
    "import importlib, sys; folder, module, *arguments = sys.argv[1:]; "
    "sys.path.insert(0, folder); importlib.import_module(module).main(*arguments)"
)


def command_of(module: str, *arguments: object) -> list[str]:
    """Return the command that calls ``main`` of a module with the texts of some arguments.

    Modules in the working directory are not imported, not even in place of the standard library.
    """
    folder = Path(__file__).parents[2]  # of the package
    return [sys.executable, "-P", "-c", _CODE, *map(str, (folder, module, *arguments))]
