"""Print the resolved settings, or the schema of a configuration file."""

from plateau_train.config import SETTINGS, Resolved
from plateau_train.config.toml import file_schema, to_toml
from plateau_train.report.rows import Form, to_json, write_rows


def print_config(resolved: Resolved, *, describe: bool, form: Form | None) -> None:
    """Print settings as TOML on standard output, see ``to_toml``, or a row for each."""
    if form is None:
        print(to_toml(*resolved, describe=describe), end="")
        return
    values = {
        name: table.model_dump(mode="json") for name, table in dict(resolved.settings).items()
    }
    rows = [
        {"table": each.table, "key": each.key, "value": values[each.table][each.key]}
        | {"origin": resolved.origin(each.key)}
        for each in SETTINGS
    ]
    write_rows(form, rows)


def print_schema() -> None:
    """Print the JSON Schema of a configuration file."""
    print(to_json(file_schema()))
