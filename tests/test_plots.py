"""The pictures of runs: panels, curves, drops, texts, and heat maps."""

import math
import os
import subprocess
import sys
from itertools import chain
from typing import Any

import matplotlib
import numpy as np
import pytest
from helpers import make_histories, make_history
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plateau_train import config
from plateau_train.commands.plot import plot
from plateau_train.errors import ConfigError, StorageError
from plateau_train.plots import Grid, PlottedRun, check_format, save_run_plot
from plateau_train.plots.heatmaps import draw_heat_map
from plateau_train.plots.panels import draw_comparison, draw_run
from plateau_train.plots.style import MOST_LISTED
from plateau_train.run.records import Ending
from plateau_train.run.results import Results

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
    assert height > 4.5 if single.drops else height == 4.5
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
        names = [text.get_text().partition(":")[0] for text in panel.get_legend().get_texts()]
        assert names == ([split, "val"] if val and split == "test" else [split])


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


def test_an_inset_repeats_the_later_epochs_if_the_first_ones_flatten_the_curves():
    single = make_history(50, drop_every=7, val=True)
    drops = single.drops
    figure: Any = draw_run([single], config.Settings())
    for panel in figure.axes[1:]:
        (zoom,) = panel.child_axes
        for curve, whole in zip(zoom.lines[::2], panel.lines[::2], strict=False):
            if curve.get_linestyle() != ":":
                assert list(curve.get_ydata()) == list(whole.get_ydata())[5:]
        low, high = zoom.get_ylim()
        vertical = [line.get_xdata()[0] for line in zoom.lines if line.get_linestyle() == ":"]
        assert vertical == [drop.position for drop in drops if drop.position >= 5]
        values = zoom.lines[0].get_ydata()
        assert low < min(values) <= max(values) < high
    assert not any(
        panel.child_axes for panel in draw_run([make_history(3)], config.Settings()).axes
    )


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
        if panel.get_legend() is not None:
            texts += panel.get_legend().get_texts()
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
    assert rest == 0 or lines[-1] == [
        "and",
        f"{rest} more drops; events.jsonl lists them with their reasons",
    ]
    numbers = {int(text.get_text()): text.xy for text in figure.axes[0].texts}
    assert 1 in numbers
    assert rest or len(numbers) == len(single.drops)
    for number, (position, scale) in numbers.items():
        drop = single.drops[number - 1]
        assert position == drop.position
        assert drop.scale_after < scale < drop.scale_before


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
        plot(small_run, tmp_path / "plot.png", 1)
    assert plot(small_run, tmp_path / "plot.svg", 0).stat().st_size > 0
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
    assert [text.get_text() for text in legend.get_texts()] == names
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


def test_a_run_that_ends_before_the_inset_begins_has_no_curve_in_it():
    runs = [
        PlottedRun(config.Settings(), [make_history(num_epochs)], f"{num_epochs} epochs")
        for num_epochs in (50, 2)
    ]
    figure: Any = draw_comparison(runs, "2 runs")
    FigureCanvasAgg(figure).draw()
    for panel in figure.axes[1:]:
        (zoom,) = panel.child_axes
        curves = [line for line in zoom.lines if line.get_marker() == "None"]
        assert [len(curve.get_xdata()) for curve in curves] == [46, 0]
        values = curves[0].get_ydata()
        low, high = zoom.get_ylim()
        assert low < min(values) <= max(values) < high


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
    (label,) = panel.get_legend().get_texts()
    assert label.get_text() == "geometric mean, min to max"


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
    assert line.get_ydata()[-1] == pytest.approx(1 / 8 / 1.5)
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
print(matplotlib.rcParams["lines.linewidth"])
"""


@pytest.mark.parametrize(
    ("content", "backend", "width"),
    [
        (b"lines.linewidth: 9\ntext.usetex: perhaps\n", "nonsense", 9.0),
        (b"\xff\xfe\x00", "", 1.5),
        (b"lines.linewidth: 9\n", "svg", 9.0),
    ],
)
def test_matplotlib_is_imported_whatever_its_configuration(tmp_path, content, backend, width):
    file = tmp_path / "matplotlibrc"
    file.write_bytes(content)
    variables = {"MATPLOTLIBRC": str(file), "MPLBACKEND": backend, "MPLCONFIGDIR": "/dev/null/x"}
    done = subprocess.run(
        [sys.executable, "-c", PRINT_LINE_WIDTHS],
        env=os.environ | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == (f"1.5\n{width}\n", "")


def test_an_error_of_the_system_while_drawing_is_one_of_storage(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("plateau_train.plots.panels.draw_run", fail)
    with pytest.raises(StorageError, match="cannot be written: No usable temporary directory"):
        save_run_plot(tmp_path / "plot.png", [make_history(1)], config.Settings())
    assert not list(tmp_path.iterdir())
