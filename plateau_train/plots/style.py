"""What the figures share: themes, axes, curves, texts, and how a file is written."""

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from plateau_train.config import FigureOptions
from plateau_train.plots import matplotlib_defaults
from plateau_train.run import storage

# The palette of Okabe and Ito, for color-blind readers; line styles differ as well.
BLACK, ORANGE, SKY_BLUE, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
WHITE = "#FFFFFF"
RUN_LINESTYLES = ("-", "--", "-.", (0, (1, 1)))
SPLIT_LINESTYLES = {"train": "-", "test": "-", "val": "--"}

Look = dict[str, Any]  # keyword arguments of matplotlib
COLOR_BAR: Look = {"fraction": 0.05, "pad": 0.02, "aspect": 25}
ABOVE: Look = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}  # a legend covers no curve

MOST_LISTED = 12  # reasons of drops below a figure
TALK_SIZE = (13.333, 7.5)  # inches of a slide
CHARACTER = 0.62  # the width of a character, as a share of the font size


class NotebookFigure(Figure):
    """A figure that a notebook displays, also where pyplot was never imported."""

    def _repr_png_(self) -> bytes:
        with matplotlib_defaults():
            return render(self, "png")


class Theme(NamedTuple):
    """Colors and sizes that follow from the options of a figure.

    The colors of lines have a contrast of at least 3 with the background (WCAG 1.4.11).
    """

    options: FigureOptions
    background: str
    ink: str  # of texts and axes
    muted: str  # of notes and the lines of drops
    run_colors: tuple[str, ...]
    split_colors: dict[str, str]
    color_map: str  # of heat maps: it ends in the color that stands out from the background
    tick: float  # font sizes in points: ticks and legends,
    label: float  # labels of axes,
    panel_title: float  # titles of panels,
    heading: float  # the heading,
    note: float  # and reasons and notes

    @classmethod
    def of(cls, options: FigureOptions, num_panels: int) -> "Theme":
        """Return the theme of some options, for a figure with so many panels."""
        size = options.font_size or _default_font_size(options, num_panels)
        sizes = (size, size * 12 / 11, size * 13 / 11, size * 14 / 11, size * 8.5 / 11)
        if options.dark:
            runs = (SKY_BLUE, ORANGE, GREEN, WHITE, PURPLE, VERMILION, YELLOW)
            splits = {"train": SKY_BLUE, "test": ORANGE, "val": GREEN}
            return cls(options, "#15181C", "#F2F2F2", "#A6ACB3", runs, splits, "Blues_r", *sizes)
        runs = (BLUE, VERMILION, GREEN, BLACK, PURPLE)
        splits = {"train": BLUE, "test": VERMILION, "val": GREEN}
        return cls(options, WHITE, BLACK, "#666666", runs, splits, "Blues", *sizes)

    @property
    def is_talk(self) -> bool:
        return self.options.style == "talk"

    @property
    def enlarged(self) -> float:
        """The factor on line widths and markers."""
        return self.tick / 11

    @property
    def line(self) -> float:
        """The width of a curve in points."""
        return 1.5 * self.enlarged

    @property
    def row(self) -> float:
        """The height in inches of a row of a legend."""
        return 1.6 * self.tick / 72

    @property
    def best_marker(self) -> Look:
        size, edge = 6 * self.enlarged, 1.0 * self.enlarged
        look: Look = {"marker": "o", "markersize": size, "markeredgewidth": edge, "zorder": 4}
        return look | {"markeredgecolor": self.background}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Use the colors for what is drawn."""
        names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        colors: Any = dict.fromkeys((*names, "axes.titlecolor"), self.ink)
        colors |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), self.background)
        colors |= {"grid.color": self.muted, "legend.labelcolor": self.ink}
        with rc_context(colors):
            yield

    def new_figure(self, width: float, height: float, **layout: Any) -> Figure:
        """Return an empty figure; the size of the options, or of a slide, comes before this one."""
        size = self.options.size or (TALK_SIZE if self.is_talk else (width, height))
        engine = ConstrainedLayoutEngine(**layout)
        figure = NotebookFigure(figsize=size, dpi=self.options.dpi, layout=engine)
        if self.options.transparent:
            figure.set_facecolor("none")
        return figure

    def add_panels(self, figure: Figure, rows: int, columns: int, **details: Any) -> list[Axes]:
        """Add a grid of panels; return them row by row."""
        panels = figure.subplots(rows, columns, squeeze=False, **details).ravel().tolist()
        if self.options.transparent:
            for panel in panels:
                panel.set_facecolor("none")
        return panels

    @property
    def has_fixed_size(self) -> bool:
        """Whether the size does not follow from what is drawn."""
        return self.options.size is not None or self.is_talk

    @property
    def is_brief(self) -> bool:
        """Whether details are left out: on a slide, and in a small figure."""
        return self.is_talk or (self.options.size is not None and min(self.options.size) < 4)

    def write_heading(self, figure: Figure, description: str, largest: float = math.inf) -> None:
        """Write the title of the options or a description, no wider than the figure."""
        text = self.heading_text(description)
        if not text:
            return
        text, fontsize = fit_text(text, figure.get_figwidth() - 0.2, min(self.heading, largest))
        figure.suptitle(text, fontsize=fontsize, parse_math=False)

    def heading_text(self, description: str) -> str:
        """Return the title of the options, or else a description."""
        title = self.options.title
        return description if title is None else title.strip()

    def write_reasons(
        self, figure: Figure, reasons: Sequence[str], where: str, end: str = ""
    ) -> None:
        """Add lines below the panels: the first reasons, numbered, and where all of them are.

        ``end`` is one without a number, after them.

        A slide and a small figure have none. They take at most a quarter of a figure whose size
        was given.
        """
        if self.is_brief or not (reasons or end):
            return
        height = 1.52 * self.note / 72
        num_characters = int((figure.get_figwidth() - 0.3) * 72 / (0.54 * self.note))
        most = MOST_LISTED + 1  # lines
        if self.has_fixed_size:
            most = int(0.25 * figure.get_figheight() / height)
        lines: list[str] = []
        num_listed = 0
        for reason in reasons[:MOST_LISTED]:
            # A number of one digit is aligned by a space that is as wide as a digit.
            text = f"{num_listed + 1:\N{FIGURE SPACE}>2}  {reason}"
            broken = textwrap.wrap(text, num_characters, subsequent_indent=" " * 6)
            is_last = num_listed + 1 == len(reasons)
            if len(lines) + len(broken) + (not is_last) > most:
                break
            lines += broken
            num_listed += 1
        if num_more := len(reasons) - num_listed:
            lines.append(f"and {num_more:,} more: {where}" if num_listed else where)
        indent = " " * 6
        lines += textwrap.wrap(end, num_characters, initial_indent=indent, subsequent_indent=indent)
        if not self.has_fixed_size:
            figure.set_figheight(figure.get_figheight() + height * len(lines))
        look: Look = {"fontsize": self.note, "parse_math": False}
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", **look)

    def use_few_ticks(self, panel: Axes) -> None:
        """Leave a slide few ticks on the vertical axis."""
        if self.is_talk:
            panel.yaxis.set_major_locator(MaxNLocator(4))

    def num_columns(self, panel: Axes) -> int:
        """Return the number of panels side by side."""
        return _grid_of(panel).ncols

    def panel_height(self, panel: Axes) -> float:
        """Return about how high a panel will be in points, without its title and axis."""
        grid = _grid_of(panel)
        return 0.6 * 72 * grid.figure.get_figheight() / grid.nrows

    def panel_width(self, panel: Axes) -> float:
        """Return about how wide a panel will be in points, without its axis."""
        grid = _grid_of(panel)
        return 72 * (grid.figure.get_figwidth() / grid.ncols - 0.25) - 2.1 * self.tick

    def finish(self, panel: Axes, drops: Sequence[float], last: float) -> None:
        """Show the horizontal axis up to ``last``, with a line at each drop and a grid."""
        look: Look = {"color": self.muted, "linewidth": 0.8 * self.enlarged, "linestyle": ":"}
        for position in drops:
            panel.axvline(position, zorder=0, alpha=min(1, max(0.1, 12 / len(drops))), **look)
        margin = 0.03 * last or 0.1  # space for half a marker
        panel.set_xlim(-margin, last + margin)
        most = 4 if self.is_talk else "auto"
        panel.xaxis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))
        panel.tick_params(labelsize=self.tick, width=0.8 * self.enlarged)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.spines[:].set_linewidth(0.8 * self.enlarged)


def _default_font_size(options: FigureOptions, num_panels: int) -> float:
    """Return the size of ticks that suits a figure; smaller figures have smaller ones."""
    is_talk = options.style == "talk"
    usual = 18 if is_talk else 11
    if options.size is None:
        return usual
    width, height = options.size
    side = (width * height / (1 if is_talk else num_panels)) ** 0.5
    # Of a slide or, on paper, a panel that is about so many inches wide and high.
    return max(6, usual * min(1, side / (10 if is_talk else 3.6)))


def _grid_of(panel: Axes) -> Any:
    place: Any = panel.get_subplotspec()
    return place.get_gridspec()


def fit_text(text: str, width: float, largest: float) -> tuple[str, float]:
    """Return a text, and the font size in points at which it fits into so many inches.

    A line that would become much smaller than ``largest`` is broken, into three at most.
    """

    def size_of(text: str) -> float:
        return min(largest, width * 72 / (CHARACTER * max(map(len, text.splitlines()))))

    broken, longest = text, max(map(len, text.splitlines()))
    for num_lines in (2, 3):
        if size_of(broken) >= 0.75 * largest:
            break
        limit = -(-longest // num_lines) + 8
        lines = (textwrap.wrap(line, limit, break_on_hyphens=False) for line in text.splitlines())
        broken = "\n".join(chain(*lines))
    return broken, size_of(broken)


def render(figure: Figure, kind: str) -> bytes:
    """Return the content of a file, without a date or random names: equal figures, equal files."""
    metadata: Look = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "plateau-train"}), warnings.catch_warnings():
        # Characters that the font lacks, in the name of a class or run, are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        # Nor does everything fit into the smallest figures.
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.savefig(content, format=kind, dpi="figure", metadata=metadata[kind])
    return content.getvalue()


def save_figure(path: Path, kind: str, figure: Figure) -> None:
    """Write a figure; raises ``StorageError`` if the file cannot be written."""
    with storage.as_storage_error(path):  # matplotlib may need a folder for temporary files
        content = render(figure, kind)
    storage.write_bytes(path, content)
