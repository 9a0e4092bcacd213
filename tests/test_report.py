import io

import pytest
from rich.console import Console
from rich.text import Text
from test_run import DROP, RECORD

from plateau_train.errors import ConfigError
from plateau_train.report import console as module
from plateau_train.report.console import Report, printable, show_error


@pytest.fixture
def terminal(monkeypatch):
    """Let a report write to a terminal of a given width, and return what it wrote."""

    def make(width, *, quiet=False):
        screen = io.StringIO()

        def console(**options):
            options.pop("stderr", None)
            return Console(file=screen, force_terminal=True, width=width, **options)

        monkeypatch.setattr(module, "Console", console)
        return Report(quiet=quiet), screen

    return make


def tell(report, record=RECORD, drops=()):
    report.epoch([record], drops, num_epochs=50, patience=5, num_trainings=1, seconds=3.14)


def test_without_a_terminal_an_epoch_is_one_plain_line(capsys):
    tell(Report(), RECORD.model_copy(update={"train_loss": 0.3121, "wait": 0}))
    assert capsys.readouterr().out == (
        "epoch 1/50  train loss 0.3121 acc 0.5000  test loss 1.5000 acc 0.2500  scale 0.5  "
        "lr 0.005  wait 0/5, to beat 0.9999\n"
    )


def test_without_a_terminal_a_drop_is_one_plain_line_however_long(capsys):
    tell(Report(), drops=[DROP])
    out = capsys.readouterr().out
    assert out.splitlines()[1] == DROP.describe()
    assert "\x1b" not in out


def test_validation_and_cooldown_are_told_where_there_are_any(capsys):
    changes = {"val_loss": 0.7, "val_accuracy": 0.6, "cooldown": 2}
    tell(Report(), RECORD.model_copy(update=changes))
    out = capsys.readouterr().out
    assert "val loss 0.7000 acc 0.6000" in out
    assert "cooldown 2" in out


def test_a_row_fits_80_columns_and_has_its_titles_once(terminal):
    report, screen = terminal(80)
    small = {"scale": 0.00390625, "learning_rate": 3.90625e-05}
    for _ in range(3):
        tell(report, RECORD.model_copy(update=small))
    lines = Text.from_ansi(screen.getvalue()).plain.splitlines()
    lines = [line for line in lines if line.strip()]
    assert sum("train loss" in line for line in lines) == 1
    assert len(lines) == 4
    for shown in ("0.00390625", "3.906e-05", "1/5", "0.9999", "3.1s"):
        assert shown in lines[1]


@pytest.mark.parametrize("width", [200, 80, 40])
def test_with_validation_a_narrow_terminal_goes_without_what_follows_from_the_rest(terminal, width):
    report, screen = terminal(width)
    tell(report, RECORD.model_copy(update={"val_loss": 0.7, "val_accuracy": 0.6}))
    titles, row = Text.from_ansi(screen.getvalue()).plain.splitlines()[:2]
    assert len(titles) == len(row) <= width
    for title in ("train loss", "val loss", "test loss", "wait"):
        assert title in titles
    assert ("time" in titles) == (width == 200)
    assert ("to beat" in titles) == (width >= 80)


def test_a_drop_is_marked_under_its_row_on_a_terminal(terminal):
    report, screen = terminal(200)
    tell(report, drops=[DROP])
    assert "drop in epoch 11, after 4,800 steps" in screen.getvalue()


def test_a_quiet_run_prints_its_folder_and_nothing_else(capsys, tmp_path):
    report = Report(quiet=True)
    report.say("reading")
    report.header({"data": "x"})
    report.start_epoch(1, 50, 10)
    tell(report, drops=[DROP])
    report.end({"done": "x"}, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}\n"
    assert captured.err == ""


def test_a_notice_is_shown_even_when_quiet(capsys):
    Report(quiet=True).warn("not the real data", "get them")
    assert capsys.readouterr().err == "NOTICE: not the real data\nNOTICE: get them\n"


def test_foreign_text_cannot_steer_the_terminal_nor_be_taken_for_markup(capsys):
    assert printable("a\x1b[31m\nb[/]") == "a\\x1b[31m\\nb[/]"
    show_error(ConfigError("bad [/] name \x1b[2J", hint="[bold]try[/bold]"))
    err = capsys.readouterr().err
    assert err == "error: bad [/] name \\x1b[2J\nhint: [bold]try[/bold]\n"
