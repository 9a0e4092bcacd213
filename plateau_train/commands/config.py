"""Print the resolved settings as TOML."""

from plateau_train.config import Resolved
from plateau_train.config.toml import to_toml


def print_config(resolved: Resolved, *, describe: bool) -> None:
    """Print settings as TOML on standard output; see ``to_toml``."""
    print(to_toml(*resolved, describe=describe), end="")
