"""The pictures of runs: panels, curves, drops, texts, and heat maps."""

import math
import os
import subprocess
import sys
import warnings
from itertools import chain
from typing import Any

import matplotlib
import matplotlib.colors
import numpy as np
import pytest
import typer
from helpers import DROP, make_histories, make_history
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.legend import Legend

from plateau_train import config
from plateau_train.cli import app
from plateau_train.cli import main as run_command_line
from plateau_train.commands.plot import plot
from plateau_train.config import (
    FIGURE_OPTIONS,
    PANEL_NAMES,
    FigureOptions,
    figure_options,
    parse_figure_options,
)
from plateau_train.errors import ConfigError, StorageError
from plateau_train.numerics.replay import replay
from plateau_train.plots import (
    Grid,
    PlottedRun,
    check_format,
    draw_comparison,
    draw_heat_map,
    draw_run,
    save,
    save_run_plot,
)
from plateau_train.plots.rule import Observations
from plateau_train.plots.scale import scale_ticks
from plateau_train.plots.style import MOST_LISTED, Theme
from plateau_train.run.reader import Run
from plateau_train.run.records import Ending, ObservedValue
from plateau_train.run.results import Results


def legend_texts(panel):
    legends = [each for each in panel.get_children() if isinstance(each, Legend)]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


TITLES = ["LR scale", "train loss", "train accuracy", "test loss", "test accuracy"]


CASES = [
    (0, 0, False),
    (1, 0, False),
    (3, 0, False),
    (3, 1, True),
    (50, 7, False),
    (50, 7, True),
    (500, 20, True),
]


@pytest.mark.parametrize(("num_epochs", "drop_every", "val"), CASES)
def test_the_panels_start_at_epoch_0_and_each_marker_is_on_its_curve(num_epochs, drop_every, val):
    single = make_history(num_epochs, val=val, drop_every=drop_every)
    records = single.records
    figure: Any = draw_run([single], config.Settings())
    width, height = figure.get_size_inches()
    assert width == 20
    assert height > 4.5
    assert [panel.get_title() for panel in figure.axes] == TITLES
    for panel in figure.axes:
        curves = [line for line in panel.lines if len(line.get_xdata()) > 2] or panel.lines[:1]
        assert min(np.min(curve.get_xdata()) for curve in curves) == 0
        low, high = panel.get_xlim()
        assert low < 0
        assert high > num_epochs
    for panel, (split, metric, best) in zip(
        figure.axes[1:],
        [("train", "loss", min), ("train", "accuracy", max)]
        + [("test", "loss", min), ("test", "accuracy", max)],
        strict=True,
    ):
        values = [getattr(record, f"{split}_{metric}") for record in records]
        curve, marker = panel.lines[:2]
        assert list(curve.get_ydata()) == values
        (x,), (y,) = marker.get_xdata(), marker.get_ydata()
        assert y == best(values)
        assert curve.get_ydata()[list(curve.get_xdata()).index(x)] == y
        bottom, top = sorted(panel.get_ylim())
        assert bottom < y < top
        labels = legend_texts(panel)
        word = "lowest" if metric == "loss" else "highest"
        for name in ["test: ", "val: "] if val and split == "test" else [""]:
            values = [
                getattr(record, f"{name.strip(': ') or split}_{metric}") for record in records
            ]
            label = f"{name}{word} {best(values):.4f} at epoch {values.index(best(values))}"
            assert label in labels


def test_each_drop_is_a_line_through_all_panels_and_a_step_of_the_scale():
    single = make_history(50, drop_every=7)
    drops = single.drops
    figure: Any = draw_run([single], config.Settings())
    positions = [drop.position for drop in drops]
    for panel in figure.axes:
        vertical = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]
        assert vertical == positions
    scale = figure.axes[0].lines[0]
    assert figure.axes[0].get_yscale() == "log"
    assert scale.get_drawstyle() == "steps-post"
    x, y = scale.get_xdata(), scale.get_ydata()
    assert (x[0], x[-1]) == (0, 50)
    assert list(x[1:][np.diff(y) < 0]) == positions
    assert [y[0], *y[1:][np.diff(y) < 0]] == [1.0, *(drop.scale_after for drop in drops)]


@pytest.mark.parametrize(("num_epochs", "first"), [(3, 0), (20, 2), (50, 3), (500, 1)])
def test_the_first_epochs_leave_a_panel_where_they_would_flatten_the_others(num_epochs, first):
    single = make_history(num_epochs, drop_every=7)
    for panel, (split, metric) in zip(
        draw_run([single], config.Settings()).axes[1:],
        [("train", "loss"), ("train", "accuracy"), ("test", "loss"), ("test", "accuracy")],
        strict=True,
    ):
        values = np.array([getattr(record, f"{split}_{metric}") for record in single.records])
        low, high = panel.get_ylim()
        inside = (values > low) & (values < high)
        assert inside.tolist() == [epoch >= first for epoch in range(num_epochs + 1)]
        notes = [text.get_text() for text in panel.texts]
        arrow = "\N{UPWARDS ARROW}" if metric == "loss" else "\N{DOWNWARDS ARROW}"
        assert notes == ([f"{arrow} epoch 0: {values[0]:.3g}"] if first else [])


@pytest.mark.parametrize(("num_epochs", "drop_every", "val"), CASES)
def test_no_text_is_cut_off_or_overlaps_another(num_epochs, drop_every, val):
    single = make_history(num_epochs, val=val, drop_every=drop_every)
    long = config.Settings(
        data=config.DataSettings(dataset="garments"), run=config.RunSettings(seed=(2**32 - 1,))
    )
    figure: Any = draw_run([single], long)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # lays it out
    renderer = canvas.get_renderer()
    whole = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.texts]
    numbers = figure.axes[0].texts
    boxes += [(f"number {text.get_text()}", text.get_window_extent(renderer)) for text in numbers]
    for panel in figure.axes:
        texts = [panel.title, panel.xaxis.label, *panel.get_yticklabels(), *panel.get_xticklabels()]
        legends = [each for each in panel.get_children() if isinstance(each, Legend)]
        texts += [text for legend in legends for text in legend.get_texts()]
        boxes += [
            (f"{panel.get_title()}: {text.get_text()}", text.get_window_extent(renderer))
            for text in texts
            if text.get_text() and text.get_visible() and _shown(panel, text)
        ]
    for name, box in boxes:
        assert whole.x0 <= box.x0, f"{name} is cut off"
        assert box.x1 <= whole.x1, f"{name} is cut off"
        assert whole.y0 <= box.y0, f"{name} is cut off"
        assert box.y1 <= whole.y1, f"{name} is cut off"
    for number, (name, box) in enumerate(boxes):
        for other_name, other in boxes[number + 1 :]:
            assert not box.overlaps(other), f"{name} lies on {other_name}"


def _shown(panel, text):
    """Leave out the labels of ticks that lie outside the panel, which are not drawn."""
    x, y = text.get_position()
    if text in panel.get_xticklabels():
        return panel.get_xlim()[0] <= x <= panel.get_xlim()[1]
    if text in panel.get_yticklabels():
        return panel.get_ylim()[0] <= y <= panel.get_ylim()[1]
    return True


def test_the_heading_says_that_the_garments_are_not_fashion_mnist():
    single = make_history(3)
    garments = config.Settings(data=config.DataSettings(dataset="garments"))
    for settings in (garments, config.Settings()):
        figure: Any = draw_run([single], settings)
        text = figure._suptitle.get_text()
        assert ("not Fashion-MNIST" in text) == (settings is garments)


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_equal_runs_give_equal_files_in_every_format(tmp_path, ending):
    files = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    for file in files:
        save_run_plot(file, [make_history(3, drop_every=2)], config.Settings())
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_format_is_that_of_the_suffix_in_any_case(tmp_path):
    assert [check_format(tmp_path / name) for name in ("a.PNG", "b.svg", "c.1.pdf")] == [
        "png",
        "svg",
        "pdf",
    ]


def test_an_unknown_format_is_refused_and_the_known_ones_are_listed(tmp_path):
    with pytest.raises(ConfigError) as refused:
        save_run_plot(tmp_path / "plot.gif", [make_history(1)], config.Settings())
    assert ".png, .svg or .pdf" in refused.value.hint
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("drop_every", "num_listed"), [(7, 7), (4, 12), (2, MOST_LISTED)])
def test_each_drop_has_a_number_at_its_step_and_its_reason_below_the_panels(drop_every, num_listed):
    single = make_history(50, drop_every=drop_every)
    figure: Any = draw_run([single], config.Settings())
    lines = [line.split(maxsplit=1) for line in figure._supxlabel.get_text().splitlines()]
    assert lines[:num_listed] == [
        [f"{number}", drop.describe()]
        for number, drop in enumerate(single.drops[:num_listed], start=1)
    ]
    rest = len(single.drops) - num_listed
    more = f"{rest} more: events.jsonl lists all drops with their reasons"
    assert rest == 0 or lines[-1] == ["and", more]
    numbers = {int(text.get_text()): text.xy for text in figure.axes[0].texts}
    assert 1 in numbers
    assert rest or len(numbers) == len(single.drops)
    for number, (position, scale) in numbers.items():
        drop = single.drops[number - 1]
        assert position == drop.position
        assert scale == drop.scale_after


def test_several_replicas_are_a_mean_with_a_band_and_thin_lines():
    three = make_histories(20, 4, 6, 9)
    early = make_history(12, drop_every=5, replica=7)
    ending = Ending(replica=7, epoch=12, reason="diverged", message="the loss is not finite")
    early = early._replace(ending=ending)
    garments = config.Settings(data=config.DataSettings(dataset="garments"))
    figure: Any = draw_run([*three, early], garments)
    for panel, metric in zip(
        figure.axes[1:], ["train_loss", "train_accuracy", "test_loss", "test_accuracy"], strict=True
    ):
        rows = np.array([[getattr(each, metric) for each in one.records] for one in three])
        mean, spread = rows.mean(axis=0), rows.std(axis=0, ddof=1)
        curve, *thin, marker = panel.lines
        np.testing.assert_allclose(curve.get_ydata(), mean)
        np.testing.assert_array_equal([line.get_ydata() for line in thin], rows)
        (x,), (y,) = marker.get_xdata(), marker.get_ydata()
        assert y == curve.get_ydata()[x] == (mean.min() if "loss" in metric else mean.max())
        (band,) = panel.collections
        corners = band.get_paths()[0].vertices
        for epoch in range(21):
            ends = corners[corners[:, 0] == epoch, 1]
            assert ends.min() == pytest.approx(mean[epoch] - spread[epoch])
            assert ends.max() == pytest.approx(mean[epoch] + spread[epoch])
    title = figure._suptitle.get_text()
    assert "4 seeds (mean and one standard deviation of the 3 that finished)" in title
    box = figure._suptitle.get_window_extent(FigureCanvasAgg(figure).get_renderer())
    assert 0 < box.x0 < box.x1 < figure.bbox.x1
    scale, *_ = figure.axes[0].lines
    at_end = [one.records[-1].scale for one in three]
    assert scale.get_ydata()[-1] == pytest.approx(math.prod(at_end) ** (1 / 3))


@pytest.mark.parametrize(("count", "num_rows"), [(3, 3), (30, 1)])
def test_each_drop_of_several_replicas_has_a_tick(count, num_rows):
    several = make_histories(20, *range(4, 4 + count))
    panel = draw_run(several, config.Settings()).axes[0]
    rows = {}
    for ticks in panel.collections:
        segments = getattr(ticks, "get_segments", list)()  # the band has none
        for (position, bottom), (_, top) in segments:
            assert 0 < bottom < top < 0.26
            rows.setdefault(bottom, []).append(position)
    ordered = [rows[bottom] for bottom in sorted(rows, reverse=True)]
    expected = [[drop.position for drop in one.drops] for one in several if one.drops]
    assert len(ordered) == num_rows
    assert list(chain(*ordered)) == list(chain(*expected))


def scheduled(schedule, scales):
    single = make_history(len(scales) - 1)
    records = [
        record.model_copy(update={"scale": scale})
        for record, scale in zip(single.records, scales, strict=True)
    ]
    return single._replace(records=records), config.Settings(
        optimizer=config.OptimizerSettings(schedule=schedule, step_epochs=2)
    )


@pytest.mark.parametrize(
    ("schedule", "scales", "drawstyle", "yscale"),
    [
        ("constant", [1.0, 1.0, 1.0], "default", "linear"),
        ("cosine", [1.0, 0.75, 0.25, 0.0], "default", "linear"),
        ("one-cycle", [0.04, 1.0, 0.5, 4e-6], "default", "linear"),
        ("step", [1.0, 1.0, 1.0, 0.5, 0.5], "steps-pre", "log"),
    ],
)
def test_the_scale_of_another_schedule_is_read_from_the_records(
    schedule, scales, drawstyle, yscale
):
    single, settings = scheduled(schedule, scales)
    figure: Any = draw_run([single], settings)
    line = figure.axes[0].lines[0]
    assert list(line.get_ydata()) == scales
    assert (line.get_drawstyle(), figure.axes[0].get_yscale()) == (drawstyle, yscale)
    title = figure._suptitle.get_text()
    assert title.startswith(f"{schedule} on ")
    assert "patience" not in title
    assert ("every 2 epochs" in title) == (schedule == "step")


def test_one_replica_of_a_run_can_be_drawn_alone(small_run, tmp_path):
    with pytest.raises(ConfigError, match="has no replica 1"):
        plot(small_run, tmp_path / "plot.png", 1, config.FigureOptions())
    assert plot(small_run, tmp_path / "plot.svg", 0, config.FigureOptions()).stat().st_size > 0
    two = config.Settings(run=config.RunSettings(seed=(10, 11)))
    figure: Any = draw_run(make_histories(5, 2, 2)[1:], two)
    assert "seed 11 (replica 1)" in figure._suptitle.get_text()


def test_several_runs_share_the_panels_and_one_legend():
    cosine, its_settings = scheduled("cosine", [1.0, 0.75, 0.25, 0.0])
    names = ["_a $b$", "b", "c" * 60]
    runs = [
        PlottedRun(config.Settings(), make_histories(20, 4, 6, 9), names[0]),
        PlottedRun(config.Settings(), [make_history(10, drop_every=3)], names[1]),
        PlottedRun(its_settings, [cosine], names[2]),
    ]
    figure: Any = draw_comparison(runs, "3 runs")
    FigureCanvasAgg(figure).draw()
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == [
        f"run 1: {names[0]} (3 seeds)",
        f"run 2: {names[1]}",
        f"run 3: {names[2]}",
        "best epoch",
    ]
    assert [panel.get_title() for panel in figure.axes] == TITLES
    looks = set()
    for panel in figure.axes[1:]:
        curves = [line for line in panel.lines if len(line.get_xdata()) > 1]
        assert [len(curve.get_xdata()) for curve in curves] == [21, 11, 4]
        looks |= {(curve.get_color(), curve.get_linestyle()) for curve in curves}
        markers = [line for line in panel.lines if len(line.get_xdata()) == 1]
        for curve, marker in zip(curves, markers, strict=True):
            assert marker.get_ydata()[0] == curve.get_ydata()[marker.get_xdata()[0]]
    assert len(looks) == 3
    top = min(panel.get_tightbbox().y1 for panel in figure.axes)
    assert legend.get_window_extent().y0 > top


def test_a_heat_map_shows_means_and_deviations_the_best_cell_and_diverged_seeds():
    nan = math.nan
    grid = Grid(
        "--patience",
        ["2", "5"],
        "--factor",
        ["0.1", "0.5", "0.9"],
        means=np.array([[0.5, 0.4, nan], [0.45, 9.0, nan]]),
        stds=np.array([[0.01, nan, nan], [0.02, nan, nan]]),
        num_diverged=np.array([[0, 0, 4], [1, 0, 0]]),
        metric="test loss",
    )
    figure: Any = draw_heat_map(grid, "heading")
    panel, bar = figure.axes
    written = {text.get_position()[::-1]: text.get_text().split("\n") for text in panel.texts}
    assert written == {
        (0, 0): ["0.5000", "± 0.0100"],
        (0, 1): ["0.4000"],
        (0, 2): ["diverged"],
        (1, 0): ["0.4500", "± 0.0200", "1 diverged"],
        (1, 1): ["9.0000"],
    }
    (best,) = [patch for patch in panel.patches if not patch.get_hatch()]
    assert (best.get_x() + 0.5, best.get_y() + 0.5) == (1, 0)
    hatched = {(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in panel.patches} - {(0, 1)}
    assert hatched == {(0, 2), (1, 0)}
    # The cell that learns nothing does not make the others look equal.
    low, high = panel.images[0].get_clim()
    assert (low, high) == (0.4, pytest.approx(0.7))
    assert bar.get_ylabel() == "test loss"
    assert [label.get_text() for label in panel.get_yticklabels()] == ["2", "5"]


def test_replicas_of_different_lengths_are_averaged_each_up_to_its_end():
    histories = [make_history(num_epochs) for num_epochs in (12, 8)]
    figure: Any = draw_run(histories, config.Settings())
    FigureCanvasAgg(figure).draw()
    mean, longer, shorter = figure.axes[1].lines[:3]
    assert list(mean.get_xdata()) == list(range(13))
    assert list(mean.get_ydata()[9:]) == list(longer.get_ydata()[9:])
    assert mean.get_ydata()[4] == np.mean([line.get_ydata()[4] for line in (longer, shorter)])
    assert np.isnan(shorter.get_ydata()[9:]).all()


def test_the_scale_of_several_replicas_is_a_geometric_mean_within_its_range():
    figure: Any = draw_run(make_histories(20, 4, 6, 30), config.Settings())
    panel = figure.axes[0]
    (band,) = [each for each in panel.collections if not hasattr(each, "get_segments")]
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == 1
    assert heights.min() == 1 / 32  # of the replica with five drops
    assert panel.lines[0].get_ydata()[-1] == pytest.approx((1 / 32 / 8) ** (1 / 3))
    assert legend_texts(panel) == ["geometric mean, min to max"]


def test_a_scale_of_0_makes_the_geometric_mean_0_at_the_lower_end_of_the_panel():
    usable, other = make_histories(9, 3, 3)
    last = other.drops[-1].model_copy(update={"scale_after": 0.0})
    records = [
        record.model_copy(update={"scale": 0.0}) if record.epoch == 9 else record
        for record in other.records
    ]
    underflowed = other._replace(records=records, drops=[*other.drops[:-1], last])
    panel = draw_run([usable, underflowed], config.Settings()).axes[0]
    line: Any = panel.lines[0]
    strip_and_curves = panel.get_ylim()
    assert strip_and_curves[0] < line.get_ydata()[-1] < 1 / 8
    assert Results.of([usable, underflowed]).final_scale == (0, 0, 1 / 8)
    assert Results.of([make_history(9, drop_every=3)]).final_scale == (1 / 8, 1 / 8, 1 / 8)


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture_does_not_depend_on_the_settings_of_matplotlib(tmp_path, ending):
    files = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    runs = [make_history(3, drop_every=2)]
    save_run_plot(files[0], runs, config.Settings())
    odd: Any = {"text.usetex": True, "font.family": "none", "figure.dpi": 40, "lines.linewidth": 9}
    odd |= {"savefig.bbox": "tight", "axes.grid": True}
    with matplotlib.rc_context(odd):
        save_run_plot(files[1], runs, config.Settings())
        assert matplotlib.rcParams["text.usetex"]
    assert files[0].read_bytes() == files[1].read_bytes()


PRINT_LINE_WIDTHS = """
from plateau_train import plots
with plots.matplotlib_defaults():
    import matplotlib.figure
    print(matplotlib.rcParams["lines.linewidth"])
print(*(dict.__getitem__(matplotlib.rcParams, name) for name in ("lines.linewidth", "timezone")))
print(matplotlib.get_backend(auto_select=False))
"""


@pytest.mark.parametrize(
    ("content", "backend", "expected"),
    [
        (b"lines.linewidth: 9\ntext.usetex: perhaps\n", "nonsense", "9.0 UTC\nNone"),
        (b"\xff\xfe\x00", "", "1.5 UTC\nNone"),
        (b"lines.linewidth: 9\n", "svg", "9.0 UTC\nsvg"),
        (b"backend: pdf\ntimezone: Europe/Paris\n", "", "1.5 Europe/Paris\npdf"),
    ],
)
def test_matplotlib_is_imported_whatever_its_configuration(tmp_path, content, backend, expected):
    file = tmp_path / "matplotlibrc"
    file.write_bytes(content)
    variables = {"MATPLOTLIBRC": str(file), "MPLBACKEND": backend, "MPLCONFIGDIR": "/dev/null/x"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_LINE_WIDTHS],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"1.5\n{expected}\n", "")


# The options of figures


def test_the_commands_that_draw_have_the_options_and_a_replay_has_no_panels():
    keys = {option.key for option in FIGURE_OPTIONS}
    assert {"panels", "size", "font_size", "style", "dark", "transparent", "dpi", "title"} == keys
    commands: Any = typer.main.get_command(app)
    for name, missing in (("plot", set()), ("compare", set()), ("schedule", {"panels"})):
        options = {option.name for option in commands.commands[name].params}
        assert keys - options == missing, name


@pytest.mark.parametrize(
    ("texts", "arguments", "problem"),
    [
        ({"dpi": "5"}, {"dpi": 5}, "dpi must be a whole number from 20 to 1,200, got 5"),
        ({"font_size": "99"}, {"font_size": 99}, "{font_size} must be a number from 4 to 72, got"),
        ({"size": "12"}, {"size": 12}, "size must be a width and a height from 1 to 60 inches"),
        ({"size": "0x4"}, {"size": (0, 4)}, "size must be a width and a height"),
        ({"style": "tlk"}, {"style": "tlk"}, "got tlk (did you mean talk?)"),
        ({"panels": "scale,loss"}, {"panels": ["scale", "loss"]}, "got scale,loss"),
        ({"panels": "val-los"}, {"panels": ["val-los"]}, "(did you mean val-loss?)"),
        ({"panels": "scale,scale"}, {"panels": ("scale",) * 2}, "panels must be different ones of"),
        ({"panels": ""}, {"panels": []}, "got nothing"),
        ({"size": "60x60", "dpi": "1200"}, {"size": (60, 60), "dpi": 1200}, "5,184,000,000 pixels"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_option_or_argument(texts, arguments, problem):
    for refuse, given, name in (
        (parse_figure_options, texts, "--font-size"),
        (figure_options, arguments, "font_size"),
    ):
        with pytest.raises(ConfigError) as refused:
            refuse(given)
        assert problem.format(font_size=name) in refused.value.problems[0]
        assert refused.value.hint


def test_texts_and_python_values_give_the_same_options():
    texts = {"panels": "scale, val-loss", "size": "12x4", "dark": "true", "font_size": "14"}
    values = {"panels": ["scale", "val-loss"], "size": [12, 4], "dark": True, "font_size": 14}
    assert parse_figure_options(texts) == figure_options(values) != FigureOptions()
    assert figure_options({"title": None, "dpi": None}) == parse_figure_options({})
    with pytest.raises(ConfigError, match=r"no option fontsize \(did you mean font_size\?\)"):
        figure_options({"fontsize": 3})


def draw(**arguments) -> Any:
    single = make_history(20, drop_every=4, val=True)
    return draw_run([single], config.Settings(), figure_options(arguments))


def test_the_panels_are_those_asked_for_in_their_order():
    figure = draw(panels=["val-accuracy", "scale", "train-loss"])
    assert [panel.get_title() for panel in figure.axes] == [
        "val accuracy",
        "LR scale",
        "train loss",
    ]
    assert len(draw(panels=PANEL_NAMES).axes) == len(PANEL_NAMES)
    with pytest.raises(ConfigError, match="the run held out no images for val-loss"):
        draw_run([make_history(3)], config.Settings(), figure_options({"panels": "val-loss"}))


def test_the_size_the_dots_and_the_heading_are_those_asked_for():
    figure = draw(size=(7, 3.5), dpi=40, title="$x_")
    assert figure.get_size_inches().tolist() == [7, 3.5]
    assert figure._suptitle.get_text() == "$x_"
    assert draw(title=" \n")._suptitle is None
    width, height = (int.from_bytes(figure._repr_png_()[at : at + 4]) for at in (16, 20))
    assert (width, height) == (280, 140)


def test_a_large_font_enlarges_all_texts_and_a_talk_has_few_of_them():
    usual, large, talk = draw(), draw(font_size=22), draw(style="talk")
    for panel, larger in zip(usual.axes, large.axes, strict=True):
        assert larger.title.get_fontsize() == 2 * panel.title.get_fontsize()
        assert larger.xaxis.label.get_fontsize() == 2 * panel.xaxis.label.get_fontsize()
        (small, *_), (big, *_) = panel.get_xticklabels(), larger.get_xticklabels()
        assert big.get_fontsize() == 2 * small.get_fontsize()
    assert usual._supxlabel is not None
    assert talk._supxlabel is None
    assert len(talk._suptitle.get_text()) < len(usual._suptitle.get_text())
    assert tuple(talk.get_size_inches()) == (13.333, 7.5)
    for panel, fewer in zip(usual.axes, talk.axes, strict=True):
        assert len(fewer.get_yticks()) <= 6
        assert fewer.get_xticklabels()[0].get_fontsize() > panel.get_xticklabels()[0].get_fontsize()


def test_a_small_figure_has_small_type_and_no_details():
    usual, small = draw(size=(20, 4.5)), draw(size=(4, 2.5), panels="test-loss")
    sizes = [figure.axes[0].get_xticklabels()[0].get_fontsize() for figure in (usual, small)]
    assert sizes[0] == 11
    assert 6 <= sizes[1] < 11
    assert usual._supxlabel is not None
    assert small._supxlabel is None


def test_a_figure_can_be_dark_and_can_have_no_background():
    usual, dark, both = draw(), draw(dark=True), draw(dark=True, transparent=True)
    for figure, is_dark in ((usual, False), (dark, True)):
        faces = [figure.get_facecolor(), *(panel.get_facecolor() for panel in figure.axes)]
        assert all((luminance(face) < 0.02) == is_dark for face in faces)
        texts = [figure._suptitle, figure._supxlabel, *(panel.title for panel in figure.axes)]
        assert all((luminance(text.get_color()) > 0.8) == is_dark for text in texts)
    assert {panel.get_facecolor()[3] for panel in both.axes} == {both.get_facecolor()[3]} == {0}


def luminance(color):
    """Return the relative luminance of WCAG 2."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in matplotlib.colors.to_rgb(color)
    ]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize("dark", [False, True])
def test_the_colors_of_lines_are_for_the_color_blind_and_stand_out(dark):
    theme = Theme.of(figure_options({"dark": dark}), num_panels=5)
    lines = {*theme.run_colors, *theme.split_colors.values()}
    for color in (*lines, theme.muted, theme.ink):
        low, high = sorted((luminance(color), luminance(theme.background)))
        assert (high + 0.05) / (low + 0.05) >= 3, color
    if "okabe_ito" in matplotlib.color_sequences:  # since matplotlib 3.11
        palette = map(matplotlib.colors.to_hex, matplotlib.color_sequences["okabe_ito"])
        # On a dark background white takes the place of black.
        assert {color.lower() for color in lines} - {*palette} <= ({"#ffffff"} if dark else set())


def test_a_notebook_shows_a_figure_as_it_is_saved(tmp_path):
    shown, saved = (draw(panels="scale", size="3x2", dpi=50) for _ in range(2))
    save(tmp_path / "a.png", saved)
    assert shown._repr_png_() == (tmp_path / "a.png").read_bytes()


def test_a_figure_that_is_too_small_for_its_texts_is_saved_without_a_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save(tmp_path / "a.png", draw(size="1x1"))


def test_the_command_line_passes_the_options_on(small_run, tmp_path, monkeypatch):
    picture, options = tmp_path / "a.png", ["--size", "4x3", "--dpi", "50", "--panels", "scale"]
    commands = {
        "plot": ["plot", str(small_run), "-o", str(picture), *options],
        "schedule": ["schedule", "--values", "3,2,2", "--plot", str(picture), *options[:4]],
    }
    for name, arguments in commands.items():
        monkeypatch.setattr(sys, "argv", ["plateau-train", *arguments])
        assert run_command_line() == 0
        sides = [int.from_bytes(picture.read_bytes()[at : at + 4]) for at in (16, 20)]
        assert sides == [200, 150], name
        picture.unlink()
    for command in (["schedule", "--values", "3,2,2"], ["compare", str(small_run)]):
        monkeypatch.setattr(sys, "argv", ["plateau-train", *command, "--dark"])
        with pytest.raises(ConfigError, match="--dark without --plot"):
            run_command_line()


# Why the scale dropped


def observing(mode, values, **rule):
    """Return the settings and the only replica of a run of one observation per epoch."""
    settings = config.Settings(
        data=config.DataSettings(val_fraction=0.1),
        plateau=config.PlateauSettings(mode=mode, accumulation_size=1, **rule),
    )
    single = make_history(len(values), val=True)
    records = [
        record.model_copy(
            update={"observations": (ObservedValue(step=record.step, value=values[epoch - 1]),)}
        )
        if (epoch := record.epoch)
        else record
        for record in single.records
    ]
    drops = [
        DROP.model_copy(update={"epoch": row.number, "step": 10 * row.number, "waited": row.wait})
        for row in replay(settings.plateau, values)
        if row.is_drop
    ]
    return settings, single._replace(records=records, drops=drops)


@pytest.mark.parametrize(
    ("mode", "title"),
    [("train-loss", "train loss"), ("test-accuracy", "test accuracy"), ("val-loss", "test loss")],
)
def test_the_panel_of_the_watched_metric_shows_the_observations_and_the_threshold(mode, title):
    values = [0.5, 0.4, 0.41, 0.42, 0.3, 0.29, 0.31, 0.3, 0.2]
    settings, single = observing(mode, values, patience=2, rtol=0.1, atol=0.001)
    panels = draw_run([single], settings).axes
    lines = {
        panel.get_title(): {line.get_label(): line for line in panel.lines} for panel in panels
    }
    assert [name for name, shown in lines.items() if "observed" in shown] == [title]
    shown: Any = lines[title]
    unit = (lambda value: 1 - np.array(value)) if "accuracy" in mode else np.array
    # After 0.3, 0.29 is no improvement of a tenth.
    assert shown["observed"].get_xdata().tolist() == [1, 2, 5, 8, 9]
    np.testing.assert_allclose(shown["observed"].get_ydata(), unit([0.5, 0.4, 0.3, 0.3, 0.2]))
    assert shown["before a drop"].get_xdata().tolist() == [3, 4, 6, 7]
    np.testing.assert_allclose(shown["before a drop"].get_ydata(), unit([0.41, 0.42, 0.29, 0.31]))
    line = shown["to beat"]
    assert line.get_drawstyle() == "steps-post"
    rows = replay(settings.plateau, values)
    np.testing.assert_allclose(
        line.get_ydata()[:8], unit([row.threshold for row in rows[1:]]), rtol=1e-6
    )


def test_observations_are_drawn_for_one_replica_whose_schedule_follows_the_rule():
    settings, single = observing("test-loss", [0.5, 0.4, 0.41])
    constant = settings.optimizer.model_copy(update={"schedule": "constant"})
    for histories, chosen in (
        ([single, single], settings),
        ([single], settings.model_copy(update={"optimizer": constant})),
    ):
        for panel in draw_run(histories, chosen).axes:
            assert "observed" not in [line.get_label() for line in panel.lines]


def test_the_drops_of_a_real_run_follow_its_dots_above_the_threshold(small_run):
    run = Run.open(small_run)
    (single,) = run.histories
    observations = Observations.of([PlottedRun(run.settings, [single])])
    assert observations is not None
    assert single.drops
    for drop in single.drops:
        (place,) = np.flatnonzero(np.isclose(observations.epochs, drop.position))
        assert observations.values[place] == drop.value
        assert observations.thresholds[place - 1] == pytest.approx(drop.to_beat)
        waiting = slice(place + 1 - drop.waited, place + 1)
        assert observations.is_cause[waiting].all()
        assert (observations.values[waiting] >= observations.thresholds[place - 1]).all()
    assert observations.is_cause.sum() == sum(drop.waited for drop in single.drops)


# The panel of the scale


@pytest.mark.parametrize(
    ("lowest", "factor", "min_scale", "texts"),
    [
        (1 / 8, 0.5, 0, ["1", "0.5", "0.25", "0.125"]),
        (2**-12, 0.5, 0, ["1", "1/4", "1/16", "1/64", "1/256", "1/1024", "1/4096"]),
        (2**-20, 0.5, 0, ["1", *(f"$0.5^{{{power}}}$" for power in (3, 6, 9, 12, 15, 18))]),
        (np.float32(0.1), 0.1, 0, ["1", "0.1"]),
        (0.8**5, 0.8, 0, ["1", *(f"$0.8^{{{power}}}$" for power in (1, 2, 3, 4, 5))]),
        (0.1, 0.5, 0.1, ["1", "0.5", "0.25", "0.1"]),
        (0.01, 0.5, 0.1, ["1", "1/2", "1/4", "1/8", "1/16"]),
    ],
)
def test_the_ticks_of_the_scale_are_scales_that_the_rule_reaches(lowest, factor, min_scale, texts):
    ticks = scale_ticks(float(lowest), factor, min_scale, 9)
    assert list(ticks.values())[: len(texts)] == texts
    assert len(ticks) < 10
    powers = [math.log(tick) / math.log(factor) for tick in ticks if tick != min_scale]
    assert powers == pytest.approx([round(power) for power in powers])


def test_each_row_of_drops_is_named_by_its_seed_or_its_run():
    three = make_histories(20, 4, 6, 9)
    names = [text.get_text() for text in draw_run(three, config.Settings()).axes[0].texts]
    assert names == ["drops", "seed 10", "seed 11", "seed 12"]
    runs = [PlottedRun(config.Settings(), three, name) for name in ("one", "$two$")]
    panel = draw_comparison([*runs, runs[0]._replace(histories=[make_history(9)])], "").axes[0]
    assert [text.get_text() for text in panel.texts] == ["drops", "one", "$two$"]
    long = [run._replace(label="long" * 9) for run in runs]
    panel = draw_comparison(long, "").axes[0]
    assert [text.get_text() for text in panel.texts] == ["drops", "run 1", "run 2"]


@pytest.mark.parametrize(
    ("schedule", "scales", "hidden"),
    [("cosine", [1.0, 0.75, 0.25, 0.0], [3]), ("one-cycle", [0.001, 1.0, 0.5, 4e-6], [0, 3])],
)
def test_the_ends_of_a_schedule_are_inside_the_axis_of_the_scale(schedule, scales, hidden):
    smooth, its_settings = scheduled(schedule, scales)
    runs = [
        PlottedRun(its_settings, [smooth], schedule),
        PlottedRun(config.Settings(), [make_history(12, drop_every=3)], "plateau"),
    ]
    panel: Any = draw_comparison(runs, "").axes[0]
    marker, curve = panel.lines[:2]
    low, _ = panel.get_ylim()
    assert list(marker.get_xdata()) == hidden
    assert low < marker.get_ydata()[0] == curve.get_ydata()[-1] < 1 / 16


@pytest.mark.parametrize(("num_runs", "num_bands"), [(6, 6), (7, 0)])
def test_more_than_six_bands_are_left_out(num_runs, num_bands):
    two = make_histories(6, 2, 3)
    runs = [PlottedRun(config.Settings(), two, f"{number}") for number in range(num_runs)]
    figure: Any = draw_comparison(runs, "", figure_options({"panels": "test-loss"}))
    (panel,) = figure.axes
    assert len(panel.collections) == num_bands
    assert ("standard deviation" in figure.legends[0].get_title().get_text()) == bool(num_bands)


def test_equal_cells_of_a_heat_map_have_an_axis_around_their_value():
    grid = Grid(
        "--patience", ["2"], "--learning-rate", ["0.1", "0.5"],
        means=np.array([[0.8, 0.8]]), stds=np.full((1, 2), math.nan),
        num_diverged=np.zeros((1, 2), int), metric="test accuracy",
    )  # fmt: skip
    panel: Any = draw_heat_map(grid, "").axes[0]
    low, high = panel.images[0].get_clim()
    assert 0.78 < low < 0.8 < high < 0.82
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("learning rate", "patience")


def test_an_error_of_the_system_while_drawing_is_one_of_storage(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("plateau_train.plots.panels.draw_run", fail)
    with pytest.raises(StorageError, match="cannot be drawn: No usable temporary directory"):
        save_run_plot(tmp_path / "plot.png", [make_history(1)], config.Settings())
    assert not list(tmp_path.iterdir())
