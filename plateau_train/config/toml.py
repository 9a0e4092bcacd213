"""Settings as TOML files."""

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode

from plateau_train.config.settings import SETTINGS, Seeds, Setting, Settings, as_text
from plateau_train.errors import PROGRAM, ConfigError, ForeignConfigError

FORMAT = 1  # of config.toml; a version that changes the meaning of a file increments it


def read_toml(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> dict[str, Any]:
    """Read a TOML file; raises ``ConfigError`` if it is missing, invalid or of another version."""
    try:
        content = tomllib.loads(read(path).decode())
    except FileNotFoundError:
        hint = f"{PROGRAM} config > my.toml writes a file to start from"
        raise ConfigError(f"{path} does not exist", hint=hint) from None
    except OSError as error:
        problem = f"{path} cannot be read: {error.strerror}"
        raise ConfigError(problem, hint="give a readable TOML file") from None
    # tomllib's own error is a ValueError, as are those of bytes that are no text and of integers
    # with thousands of digits; thousands of brackets exhaust the stack.
    except (ValueError, RecursionError) as error:
        hint = "write texts in quotes, lists in [ ], and each key once in its table"
        raise ConfigError(f"{path} is not valid TOML: {error}", hint=hint) from None
    if (number := content.get("format", FORMAT)) != FORMAT:
        problem = f"{path} is of another version: it has format {number}, not {FORMAT}"
        raise ForeignConfigError(problem, hint="install the version that wrote it")
    return content


def to_toml(settings: Settings, origins: Mapping[str, str], *, describe: bool = False) -> str:
    """Write settings as TOML that ``--config`` reads back, with a comment for each setting.

    The comment says where the value came from, or, to ``describe`` it, what it means. A default
    that is unset or that follows from other settings is commented out: as a value it would stay
    when the file is used with another mode or another optimizer.
    """
    lines = [f"format = {FORMAT} # the format of this file"]
    for name, group in groupby(SETTINGS, attrgetter("table")):
        lines += ["", f"[{name}]"]
        for setting in group:
            value = setting.value_in(settings)
            origin = origins.get(setting.key, "default")
            is_unset = value is None or (origin == "default" and setting.may_be_unset)
            shown = _quoted(value)
            if is_unset:
                shown = setting.default if describe or value is None else as_text(value)
            line = f"{'# ' * is_unset}{setting.key} = {shown}"
            printable = "".join(char if char.isprintable() else "?" for char in origin)
            comment = f"{' ' * is_unset} # {printable}"
            lines += [f"# {setting.help}", line] if describe else [line + comment]
    return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    """Write a value as TOML, whose numbers, texts and arrays are those of JSON.

    DEL, which TOML does not permit, and the control characters after it are escaped.
    """
    if isinstance(value, Seeds):
        value = value[0] if len(value) == 1 else str(value)
    text = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub("[\x7f-\x9f]", lambda char: f"\\u{ord(char[0]):04x}", text)


class _Schema(GenerateJsonSchema):
    ignored_warning_kinds = {"non-serializable-default"}  # noqa: RUF012  (as pydantic has it)

    def generate(self, schema: Any, mode: JsonSchemaMode = "validation") -> dict[str, Any]:
        """Generate a schema without what only this program reads."""
        written = super().generate(schema, mode)
        for table in written["$defs"].values():
            for field in table["properties"].values():
                for name in Setting._fields:
                    field.pop(name, None)
        return written


def file_schema() -> dict[str, Any]:
    """Return the JSON Schema of a file that ``--config`` reads."""
    schema = Settings.model_json_schema(schema_generator=_Schema)
    schema["properties"]["format"] = {"const": FORMAT}
    return schema
