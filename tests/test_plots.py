import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from plateau_train import config
from plateau_train.errors import ConfigError
from plateau_train.run.metrics import Drop, EpochRecord
from plateau_train.run.plots import draw, save_plot

TITLES = ["LR scale", "train loss", "train accuracy", "test loss", "test accuracy"]


def history(num_epochs, *, val=False, drop_every=0):
    """A plausible run: losses fall and rise again, some epochs end with a drop inside them."""
    records, drops, scale = [], [], 1.0
    for epoch in range(num_epochs + 1):
        loss = 0.3 + 2 * math.exp(-epoch) + 0.002 * epoch
        if drop_every and epoch and epoch % drop_every == 0:
            drops.append(
                Drop(
                    epoch=epoch, step=epoch * 10 - 4, position=epoch - 0.4, scale_before=scale,
                    scale_after=scale / 2, learning_rate_before=0.01, learning_rate_after=0.01,
                    observed="train loss", value=loss, best=loss, to_beat=loss, waited=5,
                )
            )  # fmt: skip
            scale /= 2
        records.append(
            EpochRecord(
                epoch=epoch, step=epoch * 10, train_loss=loss, train_accuracy=1 - loss / 3,
                test_loss=loss + 0.1, test_accuracy=0.9 - loss / 3,
                val_loss=loss + 0.05 if val else None,
                val_accuracy=0.95 - loss / 3 if val else None,
                scale=scale, learning_rate=0.01 * scale, wait=0, cooldown=0,
            )
        )  # fmt: skip
    return records, drops


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
def test_five_panels_start_at_epoch_0_and_every_marker_lies_on_its_curve(
    num_epochs, drop_every, val
):
    records, drops = history(num_epochs, val=val, drop_every=drop_every)
    figure = draw(records, drops, config.Config())
    assert figure.get_size_inches().tolist() == [20, 4.5]
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
    records, drops = history(50, drop_every=7)
    figure = draw(records, drops, config.Config())
    positions = [drop.position for drop in drops]
    for panel in figure.axes:
        vertical = [line.get_xdata()[0] for line in panel.lines if line.get_linestyle() == ":"]
        assert vertical == positions
    scale = figure.axes[0].lines[0]
    assert figure.axes[0].get_yscale() == "log"
    assert scale.get_drawstyle() == "steps-post"
    assert list(scale.get_xdata()) == [0, *positions, 50]
    assert list(scale.get_ydata()) == [1.0, *(drop.scale_after for drop in drops), 2.0**-7]


def test_what_the_first_epochs_flatten_is_shown_again_larger():
    records, drops = history(50, drop_every=7, val=True)
    figure = draw(records, drops, config.Config())
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
    few, drops = history(3)
    assert not any(panel.child_axes for panel in draw(few, drops, config.Config()).axes)


@pytest.mark.parametrize(("num_epochs", "drop_every", "val"), CASES)
def test_nothing_is_cut_off_and_no_texts_overlap(num_epochs, drop_every, val):
    records, drops = history(num_epochs, val=val, drop_every=drop_every)
    long = config.Config(data=config.Data(dataset="garments"), run=config.Run(seed=2**32 - 1))
    figure = draw(records, drops, long)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # lays it out
    renderer = canvas.get_renderer()
    whole = figure.bbox
    boxes = [("title", figure._suptitle.get_window_extent(renderer))]
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


def test_the_title_says_when_the_data_are_not_fashion_mnist():
    records, drops = history(3)
    garments = config.Config(data=config.Data(dataset="garments"))
    assert "not Fashion-MNIST" in draw(records, drops, garments)._suptitle.get_text()
    assert "not Fashion-MNIST" not in draw(records, drops, config.Config())._suptitle.get_text()


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_equal_runs_give_equal_files_in_every_format(tmp_path, ending):
    records, drops = history(3, drop_every=2)
    files = [tmp_path / f"{name}.{ending}" for name in ("one", "two")]
    for file in files:
        save_plot(file, records, drops, config.Config())
    assert files[0].read_bytes() == files[1].read_bytes()


def test_an_unknown_format_is_refused_with_those_that_are_known(tmp_path):
    with pytest.raises(ConfigError) as refused:
        save_plot(tmp_path / "plot.gif", *history(1), config.Config())
    assert ".png, .svg or .pdf" in refused.value.hint
    assert not list(tmp_path.iterdir())
