"""The options of figures, declared once: the options of commands and the arguments in Python.

A field of ``FigureOptions`` is at once an option such as ``--font-size``, and a keyword argument
such as ``font_size``.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_core import PydanticCustomError

from plateau_train.config.settings import Setting, Table, as_text, declare, did_you_mean
from plateau_train.errors import ConfigError

PanelName = Literal[
    "scale", "train-loss", "train-accuracy", "test-loss", "test-accuracy", "val-loss",
    "val-accuracy",
]  # fmt: skip
FigureStyle = Literal["paper", "talk"]

PANEL_NAMES: tuple[PanelName, ...] = get_args(PanelName)

LARGEST_SIDE = 60  # inches
MOST_PIXELS = 200_000_000  # of a PNG file, which is drawn in 4 bytes a pixel


def _as_panels(value: object) -> object:
    """Read ``scale,test-loss`` or a list; return anything else as it is, to fail."""
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    panels = tuple(value) if isinstance(value, list | tuple) else value
    if isinstance(panels, tuple) and len(set(map(str, panels))) < len(panels):
        raise PydanticCustomError("panels", "a panel twice")
    return panels


def _as_size(value: object) -> object:
    """Read ``12x4`` or a pair; return anything else as it is, to fail."""
    if isinstance(value, str):
        return tuple(value.lower().split("x"))
    return tuple(value) if isinstance(value, list) else value


Panels = Annotated[tuple[PanelName, ...], Field(min_length=1), BeforeValidator(_as_panels)]
# strict=False: the sides of 12x4 are text.
Side = Annotated[float, Field(ge=1, le=LARGEST_SIDE, strict=False)]


class FigureOptions(Table):
    """What a figure shows, and how it looks."""

    panels: Panels = declare(
        PANEL_NAMES[:5],
        "Panels, in this order; any of scale and {train,test,val}-{loss,accuracy}",
        default_text="all but the val panels",
        values_text=f"different ones of {', '.join(PANEL_NAMES)}, separated by commas",
    )
    size: Annotated[tuple[Side, Side] | None, BeforeValidator(_as_size)] = declare(
        None,
        "Width and height in inches, such as 12x4",
        default_text="as the panels need",
        values_text=f"a width and a height from 1 to {LARGEST_SIDE} inches, such as 12x4",
    )
    font_size: float | None = declare(
        None,
        "Size in points of the numbers at the axes; other texts are larger or smaller in "
        "proportion",
        default_text="11, or 18 with --style talk; less in a small figure",
        ge=4,
        le=72,
    )
    style: FigureStyle = declare(
        "paper",
        "What the figure is for; talk has the shape of a slide, large type, few ticks, and no "
        "reasons of the drops",
    )
    dark: bool = declare(False, "Draw on a dark background")
    transparent: bool = declare(
        False, "Draw without a background; for a dark page together with --dark"
    )
    dpi: int = declare(150, "Pixels per inch of a PNG file", ge=20, le=1200)
    title: str | None = declare(
        None,
        "Heading instead of the description of what is drawn; an empty text for none",
        default_text="a description",
        values_text="a text of up to 500 characters",
        max_length=500,
    )

    def problems(self) -> Iterator[str]:
        """Yield one sentence per combination of valid options that cannot be used."""
        if any(unicodedata.category(each) == "Cc" and each != "\n" for each in self.title or ""):
            yield f"the title has a control character: {self.title!r}"
        if self.size is not None:
            width, height = self.size
            pixels = round(width * self.dpi) * round(height * self.dpi)
            if pixels > MOST_PIXELS:
                yield (
                    f"{width:g}x{height:g} inches at {self.dpi} pixels per inch are {pixels:,} "
                    f"pixels, more than {MOST_PIXELS:,}"
                )


FIGURE_OPTIONS = tuple(
    Setting("figure", key, field, **cast(dict[str, Any], field.json_schema_extra))
    for key, field in FigureOptions.model_fields.items()
)
# Those of a figure whose panels cannot be chosen.
FIXED_PANELS_OPTIONS = tuple(option for option in FIGURE_OPTIONS if option.key != "panels")
BY_KEY = {option.key: option for option in FIGURE_OPTIONS}


def figure_options(
    arguments: Mapping[str, Any], known: Sequence[Setting] = FIGURE_OPTIONS
) -> FigureOptions:
    """Validate keyword arguments such as ``{"panels": ["scale"], "size": (12, 4)}``.

    An argument that is None has its default. Raises ``ConfigError`` that names each argument that
    is unknown or has a wrong value.
    """
    given = {
        name: value.tolist() if hasattr(value, "tolist") else value  # of NumPy
        for name, value in arguments.items()
        if value is not None
    }
    names = [option.key for option in known]
    unknown = [
        f"this figure has no option {name}{did_you_mean(name, names)}"
        for name in given
        if name not in names
    ]
    if unknown:
        raise ConfigError(*unknown, hint=f"the options are {', '.join(names)}")
    return _validate(FigureOptions.model_validate, given, lambda option: option.key)


def parse_figure_options(texts: Mapping[str, str]) -> FigureOptions:
    """Validate the texts that the command line gave for options, by key.

    Raises ``ConfigError`` that names each option that has a wrong value.
    """
    return _validate(FigureOptions.model_validate_strings, texts, lambda option: option.flag)


def _validate(
    validate: Callable[[Any], FigureOptions],
    values: Mapping[str, Any],
    name_of: Callable[[Setting], str],
) -> FigureOptions:
    try:
        options = validate(dict(values))
    except ValidationError as error:
        problems: dict[str, str] = {}
        for problem in error.errors():
            key, *place = map(str, problem["loc"])
            near = did_you_mean(problem["input"], _known_words(BY_KEY[key])) if place else ""
            near = near or did_you_mean(problem["input"], BY_KEY[key].choices)
            problems.setdefault(key, _describe(BY_KEY[key], values[key], name_of) + near)
        raise ConfigError(*problems.values(), hint="leave it out for the default") from None
    if unusable := list(options.problems()):
        raise ConfigError(*unusable, hint="give a title in plain text, a smaller size, or less dpi")
    return options


def _known_words(option: Setting) -> tuple[str, ...]:
    return PANEL_NAMES if option.key == "panels" else ()


def _describe(option: Setting, value: object, name_of: Callable[[Setting], str]) -> str:
    shown = as_text(tuple(value) if isinstance(value, list) else value)
    return f"{name_of(option)} must be {option.expected}, got {shown or 'nothing'}"
