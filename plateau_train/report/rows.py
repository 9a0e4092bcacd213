"""Results for other programs: rows of plain values by name, as JSON, CSV, columns or HTML.

The names and their units are in docs/tables.md. A value that does not exist is None: null in JSON,
an empty cell in CSV, NaN in a column of numbers, None in a column of texts.
"""

import csv
import html
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from plateau_train import config
from plateau_train.report.console import Table, printable

Row = Mapping[str, Any]
Columns = dict[str, np.ndarray]
Form = Literal["json", "csv"]

# The fields that are texts, also where none of them has a value.
TEXTS = {
    "run", "folder", "status", "problems", "schedule", "mode", "dataset", "ending", "best_by",
    "baseline", "metric", "method", "file", "class", "most_wrong_class", "split", "observed",
    "reason", "ending_reason", "torch_reason", "keras_reason", "optax_reason", "nearest_miss",
}  # fmt: skip


def write_rows(form: Form, rows: Sequence[Row], names: Sequence[str] = (), **others: Any) -> None:
    """Print rows on standard output in a form, and nothing else.

    ``names`` are those of their fields, which CSV has also where there is no row. In JSON the rows
    are an array, or, where there are ``others``, an object that has them as "results".
    """
    if form == "csv":
        print(to_csv(rows, names), end="")
    else:
        print(to_json({"results": rows} | others if others else rows))


def to_json(content: Any) -> str:
    """Write rows, or an object that holds some, as JSON with full precision."""
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, default=str)


def to_csv(rows: Sequence[Row], names: Sequence[str] = ()) -> str:
    """Write rows as CSV with a header; a list is written with spaces between its items."""
    text = io.StringIO()
    writer = csv.DictWriter(text, names or names_of(rows), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in _finite(row).items()})
    return text.getvalue()


def to_columns(rows: Sequence[Row], types: Mapping[str, Any] | None = None) -> Columns:
    """Return a NumPy array for each name, as pandas takes them.

    ``types`` has the names, by default those of the rows, and the types of columns without a row.
    """
    types = dict.fromkeys(names_of(rows)) if types is None else types
    return {
        name: _column([row.get(name) for row in rows], kind=str if name in TEXTS else kind)
        for name, kind in types.items()
    }


def to_html(table: Table) -> str:
    """Write a table for a notebook; the settings in its head are named as arguments."""
    titles = [config.as_arguments(printable(each.title)) for each in table.columns]
    heads = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    lines = [
        "".join(f"<td>{html.escape(printable(each.text_of(row)))}</td>" for each in table.columns)
        for row in table.rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def names_of(rows: Iterable[Row]) -> list[str]:
    """Return the names of all rows in their order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _finite(value: Any) -> Any:
    """Replace the numbers that JSON cannot have by None."""
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def _column(values: list[Any], kind: Any) -> np.ndarray:
    """Return an array of numbers or texts; of objects if a text is missing or for tuples."""
    if not values:
        return np.array([], kind if kind in (int, str) else None)
    present = [value for value in values if value is not None]
    if any(isinstance(value, tuple) for value in present):
        return np.fromiter(values, object, len(values))
    is_partial = len(present) < len(values)
    if kind is not str and all(isinstance(value, int | float) for value in present) and is_partial:
        return np.array([math.nan if value is None else value for value in values])
    return np.array(values, object if is_partial else None)
