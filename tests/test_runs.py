"""plateau-train runs: a row for each run; a damaged run does not stop the command."""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import pytest
from folders import make_folder, make_lines, read_newest, start_journal, write_epochs
from helpers import RECORD, command, record_of, write_lines
from rich.text import Text

from plateau_train import config
from plateau_train.api.listing import COLUMNS
from plateau_train.commands.runs import print_runs
from plateau_train.errors import RunError
from plateau_train.report.console import configure_logging
from plateau_train.run import checkpoint, storage
from plateau_train.run.checkpoint import Checkpoint
from plateau_train.run.directory import SWEEP, RunDirectory
from plateau_train.run.records import Notice
from plateau_train.training import setup

TITLES = [column.title for column in COLUMNS]


def make_run(runs_dir, name, *, accuracies=(0.1, 0.5, 0.4), done=False, notices=(), **values):
    """Write the files of a run, without checkpoints: its accuracies, of 50 epochs."""
    run, _ = make_folder(runs_dir / name, **values)
    lines = [make_lines(epoch, test_accuracy=accuracy) for epoch, accuracy in enumerate(accuracies)]
    write_lines(run.metrics, [record for epoch in lines for record in epoch.records])
    write_lines(run.timings, [timing for epoch in lines for timing in epoch.timings])
    write_lines(run.events, [Notice(event=event, message="what happened") for event in notices])
    if done:
        storage.write_text(run.summary, "{}")
    return run


def show_runs(runs_dir):
    configure_logging()
    print_runs(runs_dir, None)


def listed(runs_dir, capsys):
    """Return the printed rows, as cells under their titles, and what is printed to stderr."""
    show_runs(runs_dir)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    head, *rows = (line.split() for line in printed.out.splitlines())
    assert head == TITLES
    return [dict(zip(TITLES, row, strict=True)) for row in rows], printed.err


def test_a_row_has_the_progress_and_the_accuracies_of_a_run(tmp_path, capsys):
    make_run(tmp_path, "one", mode="test-loss", dataset="fashion_mnist", done=True)
    (row,), notices = listed(tmp_path, capsys)
    assert row == {
        "name": "one", "rule": "test-loss", "seeds": "1", "data": "fashion_mnist", "epochs": "2/50",
        "best": "0.5000", "at": "1", "final": "0.4000", "split": "test", "scale": "0.5",
        "status": "done",
    }  # fmt: skip
    assert notices == ""


def test_hidden_folders_are_not_listed(tmp_path, capsys):
    for folder in (".trash", "visible"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / SWEEP).write_text("{}")
    show_runs(tmp_path)
    notices = capsys.readouterr().err
    assert "visible is a sweep" in notices
    assert ".trash" not in notices


def test_accuracies_are_those_of_the_held_out_images_if_there_are_any(tmp_path, capsys):
    run = make_run(tmp_path, "one")
    held_out = [
        record_of(epoch, val_loss=1.0, val_accuracy=accuracy)
        for epoch, accuracy in enumerate((0.2, 0.7, 0.6))
    ]
    write_lines(run.metrics, held_out)
    ((row,), _) = listed(tmp_path, capsys)
    assert [row[title] for title in ("best", "at", "final", "split")] == [
        "0.7000", "1", "0.6000", "val",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "done", "notices"),
    [
        ("done", True, ()),
        ("done", True, ("failed", "resumed")),
        ("stopped", False, ()),
        ("stopped", False, ("interrupted",)),
        ("stopped", False, ("failed", "resumed")),
        ("failed", False, ("resumed", "failed")),
        ("running", False, ("failed", "resumed")),
    ],
)
def test_each_run_has_its_status(tmp_path, capsys, state, done, notices):
    run = make_run(tmp_path, "one", done=done, notices=notices)
    with run.locked() if state == "running" else contextlib.nullcontext():
        ((row,), _) = listed(tmp_path, capsys)
    assert row["status"] == state


def test_the_newest_run_is_the_last_and_other_folders_are_left_out(tmp_path, capsys):
    for name in ("20261122-101530-b", "20261121-101530-a", "20261123-101530-c"):
        run = make_run(tmp_path, name)
    run.make_latest()
    make_run(tmp_path, ".hidden")
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    storage.make_folder(tmp_path / "notes" / "deeper")
    rows, notices = listed(tmp_path, capsys)
    assert [row["name"][-1] for row in rows] == ["a", "b", "c"]
    assert notices == ""


def test_a_run_without_an_epoch_yet_has_dashes(tmp_path, capsys):
    make_run(tmp_path, "none", accuracies=())
    run = make_run(tmp_path, "torn", accuracies=())
    run.metrics.write_text(RECORD.model_dump_json()[:50])
    make_run(tmp_path, "unwritten").metrics.unlink()
    rows, notices = listed(tmp_path, capsys)
    for row in rows:
        assert {row[title] for title in ("epochs", "best", "at", "final", "split", "scale")} == {
            "-"
        }
        assert (row["rule"], row["status"]) == ("train-loss", "stopped")
    assert notices == ""


def test_a_torn_last_line_is_not_damage(tmp_path, capsys):
    run = make_run(tmp_path, "killed")
    with run.metrics.open("a") as file:
        file.write(RECORD.model_dump_json()[:50])
    ((row,), notices) = listed(tmp_path, capsys)
    assert (row["epochs"], row["status"], notices) == ("2/50", "stopped", "")


@pytest.mark.parametrize(
    ("file", "content", "said", "known"),
    [
        ("config.toml", b"[plateau\n", "not valid TOML", "epochs"),
        ("config.toml", b"\xff\xfe", "not valid TOML", "epochs"),
        ("config.toml", None, "config.toml does not exist", "epochs"),
        ("metrics.jsonl", b"{}\n", "line 1 is damaged", "rule"),
        ("metrics.jsonl", b"\xff\n", "line 1 is damaged", "rule"),
        ("metrics.jsonl", b'{"epoch": 1}\n{"ep', "line 1 is damaged", "rule"),
        ("events.jsonl", b'{"event": "drop"}\n', "line 1 is damaged", "rule"),
        ("timings.jsonl", b"{}\n", "line 1 is damaged", "rule"),
        ("config.toml", b"format = 2\n", "is of another version", "epochs"),
        ("metrics.jsonl", b'{"format": 2}\n', "is of another version", "rule"),
    ],
)
def test_a_run_that_is_not_usable_has_the_reason(tmp_path, capsys, file, content, said, known):
    run = make_run(tmp_path, "b", done=True)
    (run.path / file).unlink()
    if content is not None:
        (run.path / file).write_bytes(content)
    for name in ("a", "c"):
        make_run(tmp_path, name, done=True)
    rows, notices = listed(tmp_path, capsys)
    status = "unreadable" if "another version" in said else "damaged"
    assert [row["status"] for row in rows] == ["done", status, "done"]
    assert rows[1][known] != "-", "what can be read is shown"
    assert said in notices
    assert "/b/" in notices
    assert len(notices.splitlines()) == 1


def test_a_run_whose_files_do_not_match_its_checkpoint_is_damaged(tmp_path, capsys):
    write_epochs(start_journal(tmp_path / "a"), 0, 1, 2)
    damaged = start_journal(tmp_path / "b")
    write_epochs(damaged, 0, 1, 2)
    text = damaged.directory.metrics.read_text()
    damaged.directory.metrics.write_text(text.replace('"test_loss":1.5', '"test_loss":1.4'))
    rows, notices = listed(tmp_path, capsys)
    assert [(row["epochs"], row["status"]) for row in rows] == [
        ("2/50", "stopped"),
        ("-", "damaged"),
    ]
    assert "b/metrics.jsonl is damaged" in notices


def test_an_epoch_without_a_checkpoint_is_not_listed(tmp_path, capsys):
    journal = start_journal(tmp_path / "a")
    write_epochs(journal, 0, 1)
    storage.append_bytes(journal.directory.metrics, storage.as_lines(make_lines(2).records))
    ((row,), notices) = listed(tmp_path, capsys)
    assert (row["epochs"], row["status"], notices) == ("1/50", "stopped", "")


def test_a_run_with_a_checkpoint_of_another_version_is_listed_with_the_reason(tmp_path, capsys):
    run = start_journal(tmp_path / "a")
    write_epochs(run, 0)
    found = read_newest(run.directory)
    manifest = found.manifest.model_copy(update={"format": checkpoint.FORMAT + 1})
    checkpoint.save_checkpoint(run.directory.checkpoints, Checkpoint(manifest, found.arrays))
    ((row,), notices) = listed(tmp_path, capsys)
    assert (row["rule"], row["epochs"], row["status"]) == ("train-loss", "-", "unreadable")
    assert "is of another version" in notices
    assert "is damaged" not in notices


def test_a_folder_that_cannot_be_read_is_damaged(tmp_path, capsys, monkeypatch):
    def closed(_):
        raise PermissionError(13, "Permission denied")

    make_run(tmp_path, "one")
    monkeypatch.setattr(RunDirectory, "is_locked", closed)
    ((row,), notices) = listed(tmp_path, capsys)
    assert row["status"] == "damaged"
    assert f"{tmp_path}/one cannot be read: Permission denied\n" in notices


def test_a_name_cannot_control_the_terminal_or_break_its_line(tmp_path, capsys):
    for name in ("\x1b[31mred", "[bold]x", "[", "two\nlines"):
        make_run(tmp_path, name)
    rows, _ = listed(tmp_path, capsys)
    assert [row["name"] for row in rows] == [
        "\\x1b[31mred", "[", "[bold]x", "two\\nlines",
    ]  # fmt: skip


@pytest.mark.parametrize("width", [200, 80, 20])
def test_a_narrow_terminal_has_fewer_columns_but_names_and_statuses(
    tmp_path, monkeypatch, capsys, width
):
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", f"{width}"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    name = "20261122-101530-[red]-loss"  # as wide as a usual one
    make_run(tmp_path, name, dataset="fashion_mnist")
    show_runs(tmp_path)
    table, _, omitted = Text.from_ansi(capsys.readouterr().out).plain.partition("not shown at")
    lines = table.splitlines()
    assert max(map(len, lines)) <= width
    assert ("split" in omitted) == (width < 200)
    titles = lines[0].split()
    assert {"name", "best", "status"} <= set(titles)
    assert ("split" in titles) == (width == 200)
    assert ("rule" in titles) == (width >= 80)
    if width >= 80:
        assert len(lines) == 2
    assert "".join(line.split()[0] for line in lines[1:] if line[0] != " ") == name


def test_a_sweep_without_an_epoch_is_continued(tmp_path, messages):
    (tmp_path / "sweep.json").touch()
    show_runs(tmp_path)
    assert messages == [
        f"no epoch of {tmp_path} is done: plateau-train resume {tmp_path} trains its runs"
    ]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_runs_is_reported(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    show_runs(tmp_path / name)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"there is no run in {tmp_path / name}: plateau-train trains one\n"


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file cannot be listed: Not a directory"):
        show_runs(tmp_path / "file")


def test_the_command_lists_a_trained_run(small_run):
    finished = command("runs", cwd=small_run.parents[1])
    assert finished.returncode == 0
    assert finished.stderr == ""
    head, row = finished.stdout.splitlines()
    assert head.split() == TITLES
    assert row.split()[0] == small_run.resolve().name
    assert row.split()[4] == "6/6"
    assert row.split()[-1] == "done"


def test_means_of_replicas_are_listed_and_a_sweep_is_named(tmp_path, capsys):
    run = make_run(tmp_path, "one", seed="4,7", schedule="cosine")
    lines = [
        record_of(epoch, replica=replica, test_accuracy=accuracy)
        for epoch, both in enumerate(((0.1, 0.2), (0.9, 0.5), (0.6, 0.6)))
        for replica, accuracy in enumerate(both)
    ]
    write_lines(run.metrics, lines)
    storage.make_folder(tmp_path / "many")
    storage.write_text(tmp_path / "many" / "sweep.json", "{}")
    ((row,), notices) = listed(tmp_path, capsys)
    assert [row[title] for title in ("rule", "seeds", "epochs", "best", "at", "final")] == [
        "cosine", "2", "2/50", "0.7000", "1", "0.6000",
    ]  # fmt: skip
    assert f"plateau-train runs {tmp_path / 'many'} lists its runs" in notices


def test_two_checks_of_a_lock_do_not_disturb_each_other(tmp_path):
    run = make_run(tmp_path, "one")
    descriptor = os.open(run.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    assert not run.is_locked()
    os.close(descriptor)
    with run.locked():
        assert run.is_locked()


def with_a_pipe(file):
    os.mkfifo(file)


def with_a_device(file):
    file.symlink_to("/dev/zero")


def with_a_large_file(file):
    with file.open("wb") as opened:
        opened.truncate(1 << 40)


@pytest.mark.parametrize("replace", [with_a_pipe, with_a_device, with_a_large_file, Path.mkdir])
@pytest.mark.parametrize(
    "name",
    [
        "config.toml",
        "metrics.jsonl",
        "events.jsonl",
        "timings.jsonl",
        "environment.json",
        "checkpoints/epoch-000006.npz",
    ],
)
def test_what_is_not_a_regular_file_of_a_possible_size_is_damage(
    small_run, tmp_path, capsys, name, replace
):
    run, other = tmp_path / "runs" / "one", tmp_path / "runs" / "two"
    for copy in (run, other):
        shutil.copytree(small_run, copy)
    file = run / name
    file.unlink()
    replace(file)
    rows, _ = listed(tmp_path / "runs", capsys)
    # A run is listed without its environment, and from the checkpoint before a damaged one.
    is_needed = name not in ("environment.json", "checkpoints/epoch-000006.npz")
    assert [row["status"] for row in rows] == ["damaged" if is_needed else "done", "done"]
    with pytest.raises(RunError) as refused:
        list(setup.check(RunDirectory(run), config.resolve({})))
    assert str(file) in "\n".join(refused.value.problems)
