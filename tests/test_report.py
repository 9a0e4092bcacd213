"""Terminal output: epochs, drops, log messages and errors, on a terminal and elsewhere."""

import logging
import re
import sys
from typing import NamedTuple

import pytest
from helpers import DROP, RECORD, resolve, train_run
from rich.text import Text

from plateau_train.errors import ConfigError, InterruptedRunError
from plateau_train.report.console import (
    Column,
    Table,
    busy,
    configure_logging,
    fits_terminal,
    print_error,
    print_table,
    printable,
)
from plateau_train.report.progress import ProgramReport, RunReport
from plateau_train.run.journal import EpochLines
from plateau_train.run.records import Ending, MeanStd, RunWarning, Timing

logger = logging.getLogger("plateau_train")


pytestmark = pytest.mark.usefixtures("no_plots")


class Row(NamedTuple):
    name: str
    mean: MeanStd | None
    counts: dict[str, int]


ROWS = [
    Row("one [/] two", MeanStd(0.5, 0.25, 3), {"first": 1234, "second": 2}),
    Row("\x1b[2J", None, {"first": 3, "second": 4}),
]
COLUMNS = [
    Column("name", "name", is_number=False),
    Column("mean", "mean", ".2f", omit=1),
    Column("counts.first", "first", ","),
    Column("counts", "all", lambda counts: "+".join(map(str, counts.values()))),
]


@pytest.fixture
def terminal(monkeypatch):
    """Let Rich take the captured output for a terminal of a given width."""

    def set_width(width):
        for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", f"{width}"), ("TERM", "xterm")):
            monkeypatch.setenv(name, value)

    return set_width


TIMING = Timing(epoch=1, train_seconds=3, evaluate_seconds=0.14, samples_per_second=None)


def print_epoch(report, *records, events=(), seed="0"):
    """Print an epoch of a run of 50; by default ``RECORD``."""
    settings = resolve(patience="5", seed=seed).settings
    report.on_epoch([EpochLines(list(records) or [RECORD], list(events), [TIMING])], settings)


def test_without_a_terminal_an_epoch_is_one_plain_line(capsys):
    print_epoch(
        RunReport(is_quiet=False), RECORD.model_copy(update={"train_loss": 0.3121, "wait": 0})
    )
    assert capsys.readouterr().out == (
        "epoch 1/50  train loss 0.3121 acc 0.5000  test loss 1.5000 acc 0.2500  scale 0.5  "
        "lr 0.005  wait 0/5, to beat 0.9999\n"
    )


def test_without_a_terminal_a_drop_is_one_plain_line_however_long(capsys):
    print_epoch(RunReport(is_quiet=False), events=[DROP])
    out = capsys.readouterr().out
    assert out.splitlines()[1] == DROP.describe()
    assert "\x1b" not in out


def test_an_epoch_has_validation_scores_and_cooldown_if_there_are_any(capsys):
    changes = {"val_loss": 0.7, "val_accuracy": 0.6, "cooldown": 2}
    print_epoch(RunReport(is_quiet=False), RECORD.model_copy(update=changes))
    out = capsys.readouterr().out
    assert "val loss 0.7000 acc 0.6000" in out
    assert "cooldown 2" in out


def test_a_row_fits_80_columns_and_has_its_titles_once(terminal, capsys):
    terminal(80)
    report = RunReport(is_quiet=False)
    small = {"scale": 0.00390625, "learning_rate": 3.90625e-05}
    for _ in range(3):
        print_epoch(report, RECORD.model_copy(update=small))
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    lines = [line for line in lines if line.strip()]
    assert sum("train loss" in line for line in lines) == 1
    assert len(lines) == 4
    for shown in ("0.00390625", "3.906e-05", "1/5", "0.9999", "3.1s"):
        assert shown in lines[1]


@pytest.mark.parametrize("width", [200, 80, 40])
def test_a_narrow_terminal_omits_columns_that_others_imply(terminal, capsys, width):
    terminal(width)
    report = RunReport(is_quiet=False)
    print_epoch(report, RECORD.model_copy(update={"val_loss": 0.7, "val_accuracy": 0.6}))
    titles, row = Text.from_ansi(capsys.readouterr().out).plain.splitlines()[-2:]
    assert len(titles) == len(row) <= width
    for title in ("train loss", "val loss", "test loss", "wait"):
        assert title in titles
    assert ("time" in titles) == (width == 200)
    assert ("to beat" in titles) == (width >= 80)


def test_the_columns_that_an_epoch_omits_are_named_once(terminal, capsys):
    terminal(80)
    report = RunReport(is_quiet=False)
    for _ in range(2):
        print_epoch(report, RECORD.model_copy(update={"val_loss": 0.7, "val_accuracy": 0.6}))
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert lines[0] == "not shown at this width: lr, time"
    assert len(lines) == 4


def test_a_drop_is_marked_under_its_row_on_a_terminal(terminal, capsys):
    terminal(200)
    report = RunReport(is_quiet=False)
    print_epoch(report, events=[DROP])
    assert "drop in epoch 11, after 4,800 steps" in capsys.readouterr().out


def test_a_quiet_run_prints_its_folder_and_nothing_else(capsys, tmp_path):
    run = train_run(tmp_path, epochs="1", rtol="0.9", patience="1", quiet="true")
    assert run.histories[0].drops
    assert capsys.readouterr() == (f"{run.directory.path}\n", "")


@pytest.mark.parametrize(
    ("values", "drops"),
    [
        ({"epochs": "1", "accumulation_size": "13"}, "drops       no drops, final scale 1\n"),
        ({"epochs": "1", "schedule": "constant"}, "scale       final scale 1\n"),
        ({"epochs": "1", "rtol": "0.9"}, "drops       1 (epoch 1), final scale 0.5\n"),
        ({"epochs": "1", "seed": "0,1"}, "drops       0.0 \xb1 0.0 per seed, final scale 1\n"),
    ],
)
def test_a_run_ends_with_its_best_epoch_and_its_drops(capsys, tmp_path, values, drops):
    train_run(tmp_path, **values)
    printed = capsys.readouterr().out
    mean = "mean " if "seed" in values else ""
    assert re.search(rf"^best epoch  \d \(highest {mean}test accuracy\): train 0", printed, re.M)
    assert drops in printed


def test_warnings_of_an_epoch_are_one_notice_with_their_seeds(capsys):
    configure_logging(is_quiet=True)
    report = RunReport(is_quiet=True)
    warnings = [RunWarning(replica=seed, seed=seed, epoch=1, message="still") for seed in (0, 1)]
    print_epoch(report, events=warnings[:1])
    print_epoch(report, events=warnings, seed="0,1")
    assert (
        capsys.readouterr().err == "NOTICE: still\nNOTICE: seed 0: still\nNOTICE: seed 1: still\n"
    )


def test_what_takes_long_is_shown_on_a_terminal_only(terminal, capsys, monkeypatch):
    with busy("loading"):
        pass
    assert capsys.readouterr() == ("", "")
    terminal(80)
    with busy("loading"):  # FORCE_COLOR does not make a file a terminal
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with busy("loading"):
        pass
    out, err = capsys.readouterr()
    assert out == ""
    assert "loading" in Text.from_ansi(err).plain
    assert "/" not in Text.from_ansi(err).plain, "nothing is counted"


def test_what_is_counted_while_it_takes_long_is_a_bar_on_a_terminal(terminal, capsys, monkeypatch):
    with busy("loading") as update:
        assert update is None
    terminal(80)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with busy("loading") as update:
        assert update is not None
        update(30, 60)
    out, err = capsys.readouterr()
    assert out == ""
    assert "30/60" in Text.from_ansi(err).plain


def test_a_signal_is_no_error_and_each_hint_is_a_line(capsys):
    error = InterruptedRunError("stopped after epoch 8 (SIGINT)", hint="a\nb", signal_number=2)
    print_error(error)
    assert capsys.readouterr().err == "stopped after epoch 8 (SIGINT)\nhint: a\nhint: b\n"


def test_a_notice_is_shown_even_when_quiet(capsys):
    configure_logging(is_quiet=True)
    logger.warning("not the real data\nget them")
    assert capsys.readouterr().err == "NOTICE: not the real data\nNOTICE: get them\n"


def test_foreign_text_neither_controls_the_terminal_nor_acts_as_markup(capsys):
    assert printable("a\x1b[31m\nb[/]") == "a\\x1b[31m\\nb[/]"
    print_error(ConfigError("bad [/] name \x1b[2J", hint="[bold]try[/bold]"))
    err = capsys.readouterr().err
    assert err == "error: bad [/] name \\x1b[2J\nhint: [bold]try[/bold]\n"


def test_a_table_without_a_terminal_is_one_plain_line_a_row(capsys):
    print_table(Table(ROWS, COLUMNS, "a [caption]"))
    assert capsys.readouterr().out == (
        "\n"
        "a [caption]\n"
        "name                mean  first     all\n"
        "one [/] two  0.50 ± 0.25  1,234  1234+2\n"
        "\\x1b[2J                -      3     3+4\n"
    )


@pytest.mark.parametrize(
    ("width", "titles", "gap", "num_lines"),
    [
        (39, ["name", "mean", "first", "all"], "  ", 3),
        (38, ["name", "mean", "first", "all"], " ", 3),
        (35, ["name", "first", "all"], "  ", 4),
        (20, ["name", "first", "all"], " ", 6),
    ],
)
def test_a_narrow_terminal_omits_columns_and_then_folds_words(
    terminal, capsys, width, titles, gap, num_lines
):
    terminal(width)
    table = Table(ROWS, COLUMNS)
    print_table(table)
    head, *rows = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert ("width: mean" in rows[-1]) == ("mean" not in titles)
    assert head.split() == titles
    assert head.endswith(f"first{gap}   all")
    assert 1 + len(rows) == num_lines
    assert max(map(len, rows)) <= width
    assert fits_terminal(table) == (width >= 36)


def test_each_table_fits_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    assert fits_terminal(Table(ROWS, COLUMNS))


def test_a_second_handler_replaces_the_first(capsys):
    configure_logging(is_quiet=True)
    configure_logging()
    logger.info("reading [/] \x1b\n")
    logger.warning("once")
    assert capsys.readouterr() == ("", "reading [/] \\x1b\\n\nNOTICE: once\n")


def test_a_warning_is_a_panel_on_a_terminal(terminal, capsys):
    terminal(40)
    configure_logging()
    logger.warning("not the real data\nget them")
    lines = Text.from_ansi(capsys.readouterr().err).plain.splitlines()
    assert len(lines) == 4
    assert "NOTICE" in lines[0]
    assert "│ get them" in lines[2]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_warning_during_an_epoch_is_printed_above_the_bar_or_to_the_log_file(
    terminal, capsys, monkeypatch, is_terminal
):
    terminal(80)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    configure_logging()
    report = RunReport(is_quiet=False)
    report.on_epoch_start(1, 50, 10)
    logger.warning("diverged")
    report.close()
    above_the_bar, log = map(Text.from_ansi, capsys.readouterr())
    assert ("│ diverged" in above_the_bar.plain) == is_terminal
    assert ("│ diverged" in log.plain) == (not is_terminal)


def test_means_and_deviations_of_several_replicas_are_printed(terminal, capsys):
    records = [
        RECORD.model_copy(update={"test_loss": loss, "scale": scale, "learning_rate": scale / 100})
        for loss, scale in ((1.0, 1.0), (2.0, 0.25))
    ]
    drop = DROP.model_copy(update={"replica": 1, "seed": 2})
    print_epoch(RunReport(is_quiet=False), *records, events=[drop], seed="0-2")
    line, reason = capsys.readouterr().out.splitlines()
    assert "test loss 1.5000 ± 0.7071 acc" in line
    assert line.endswith("  scale 0.25 to 1  lr 0.0025 to 0.01  seeds left 2 of 3")
    assert reason == f"seed 2: {DROP.describe()}"
    terminal(200)
    print_epoch(RunReport(is_quiet=False), *records, seed="0-2")
    titles, row = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert titles.split() == [
        *("epoch", "train", "loss", "±", "acc", "±", "test", "loss", "±", "acc", "±"),
        *("scale", "lowest", "highest", "seeds", "time"),
    ]
    assert row.split()[5:7] == ["1.5000", "0.7071"]
    assert row.split()[-5:] == ["0.5", "0.25", "1", "2/3", "3.1s"]
    terminal(60)
    print_epoch(RunReport(is_quiet=False), *records, seed="0-2")
    omitted, titles, _ = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert omitted == "not shown at this width: acc, lowest, highest, seeds, time"
    assert titles.split() == ["epoch", "train", "loss", "±", "test", "loss", "±", "scale"]


def test_a_replica_that_diverged_is_a_notice_and_the_end_of_the_only_one_is_not(capsys):
    configure_logging(is_quiet=True)
    ending = Ending(replica=1, seed=2, epoch=3, reason="diverged", message="the loss is nan")
    over = Ending(epoch=4, reason="epochs", message="epoch 4, the last one")
    print_epoch(RunReport(is_quiet=True), events=[ending, over], seed="0,2")
    assert capsys.readouterr() == ("", "NOTICE: seed 2: the loss is nan\n")
    print_epoch(RunReport(is_quiet=True), events=[ending])  # its error says it
    assert capsys.readouterr() == ("", "")


def test_the_programs_of_a_sweep_print_no_means_over_settings(capsys):
    print_epoch(ProgramReport(is_quiet=False), events=[DROP])
    assert capsys.readouterr().out == ""


def test_the_values_of_an_epoch_are_below_their_titles(terminal, capsys):
    terminal(80)
    print_epoch(RunReport(is_quiet=False))
    titles, row = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert titles.index("test loss") + len("test loss") == row.index("1.5000") + len("1.5000")
