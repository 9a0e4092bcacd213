"""plateau-train compare: its numbers, compared with those computed by hand, and its errors."""

import pytest
import scipy.stats
from helpers import command, make_history, resolve, write_lines

from plateau_train import config
from plateau_train.api import comparison
from plateau_train.commands.compare import compare
from plateau_train.config.toml import to_toml
from plateau_train.errors import ConfigError, RunError, StorageError
from plateau_train.report import stats as differences
from plateau_train.report.console import configure_logging
from plateau_train.run import storage
from plateau_train.run.directory import RunDirectory
from plateau_train.run.environment import DatasetFacts, describe_environment
from plateau_train.run.records import Ending, Timing


def make_run(
    folder, name, accuracies, *, val=None, drop_epochs=(), losses=None, first=0, sha256="", **values
):
    """Write a run: a list of test accuracies for each seed, and the epochs of its drops.

    ``first`` is its first seed, and ``sha256`` that of its data.
    """
    run = RunDirectory(folder / name)
    storage.make_folder(run.path)
    values = {"dataset": "garments", "epochs": f"{len(accuracies[0]) - 1}"} | values
    values = {"seed": f"{first}-{first + len(accuracies) - 1}"} | values
    storage.write_text(run.config, to_toml(*resolve(**values)))
    if sha256:
        facts = {"name": "x", "fallback": "", "sha256": sha256}
        dataset = DatasetFacts(**facts, image_shape=(28, 28, 1), class_names=("a", "b"))
        environment = describe_environment([], dataset, None)
        run.environment.write_text(environment.model_dump_json())
    template = make_history(1, drop_every=1)
    records, events = [], []
    for replica, of_seed in enumerate(accuracies):
        for epoch, accuracy in enumerate(of_seed):
            changes = {"replica": replica, "seed": first + replica, "epoch": epoch}
            changes |= {"test_accuracy": accuracy, "step": 10 * epoch}
            changes["test_loss"] = losses[replica] if losses else 1 - accuracy
            if val:
                changes |= {"val_accuracy": val[replica][epoch], "val_loss": 0.5}
            records.append(template.records[0].model_copy(update=changes))
        if len(of_seed) < len(accuracies[0]):
            last, problem = len(of_seed) - 1, "the loss is nan"
            events.append(Ending(replica=replica, epoch=last, reason="diverged", message=problem))
        events += [
            template.drops[0].model_copy(update={"replica": replica, "epoch": epoch})
            for epoch in (drop_epochs[replica] if drop_epochs else ())
        ]
    records.sort(key=lambda record: record.epoch)
    write_lines(run.metrics, records)
    write_lines(run.events, events)
    timings = [
        Timing(epoch=epoch, train_seconds=100, evaluate_seconds=0.5, samples_per_second=None)
        for epoch in range(len(accuracies[0]))
    ]
    write_lines(run.timings, timings)
    return run.path


def show_comparison(paths, *, level=None, picture=None, pool=False):
    configure_logging()
    compare(paths, level, picture, config.FigureOptions(), None, pool=pool)


def compared(capsys, *paths, **options):
    """Return the tables, rows of cells under their titles each, and what is logged."""
    show_comparison(paths, **options)
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out
    tables = []
    for block in printed.out.split("\n\n"):
        rows = [cells(line) for line in block.splitlines() if line.startswith(("run ", "a", "b"))]
        tables.append([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])
    return tables, printed.err


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


ONE = [[0.1, 0.5, 0.7, 0.6]]


def test_a_row_has_the_results_of_a_run(tmp_path, capsys):
    first = make_run(tmp_path, "20260101-000000-a", ONE, drop_epochs=[[1, 3]])
    second = make_run(tmp_path, "20260101-000001-b", [[0.1, 0.6, 0.65, 0.65]], schedule="cosine")
    (results, differing, settings), log = compared(capsys, first, second)
    assert results == [
        {
            "run": "a",
            "rule": "train-loss",
            "seeds": "1",
            "best": "0.7000",
            "at": "2",
            "final": "0.6000",
            "to 0.65": "2",
            "drops": "2",
            "in epochs": "1, 3",
            "seconds": "402",
        },
        {
            "run": "b",
            "rule": "cosine",
            "seeds": "1",
            "best": "0.6500",
            "at": "2",
            "final": "0.6500",
            "to 0.65": "2",
            "drops": "-",
            "in epochs": "-",
            "seconds": "402",
        },
    ]
    assert differing == [
        {
            "run": "b",
            "final test accuracy": "+0.0500",
            "final test loss": "-0.0500",
            "interval": "none: a single seed",
        }
    ]
    assert settings == [
        {"run": "a", "--schedule": "plateau"},
        {"run": "b", "--schedule": "cosine"},
    ]
    assert "which every seed reaches" in log
    assert "NOTICE" not in log


def test_replicas_have_means_and_sample_deviations_and_a_paired_interval(tmp_path, capsys):
    first = make_run(
        tmp_path,
        "a",
        [[0.1, 0.70, 0.60], [0.1, 0.50, 0.62], [0.1, 0.80, 0.64]],
        drop_epochs=[[1, 2], [2], []],
    )
    second = make_run(
        tmp_path, "b", [[0.1, 0.60, 0.61], [0.1, 0.60, 0.64], [0.1, 0.60, 0.67]], patience="9"
    )
    (results, differing, settings), _ = compared(capsys, first, second, level=0.625)
    # By hand: best 0.70, 0.62, 0.80; final 0.60, 0.62, 0.64; at epochs 1, 2, 1; the level is
    # reached by the first and the third, in epoch 1 both; 2, 1 and 0 drops.
    assert results[0] == {
        "run": "a",
        "rule": "train-loss",
        "seeds": "3",
        "best": "0.7067 ± 0.0902",
        "at": "1.3 ± 0.6",
        "final": "0.6200 ± 0.0200",
        "to 0.625": "1.0 ± 0.0 (2 of 3)",
        "drops": "1.0 ± 1.0",
        "in epochs": "first 1.5 ± 0.7, last 2.0 ± 0.0",
        "seconds": "302",
    }
    # Differences 0.01, 0.02, 0.03: mean 0.02, sd 0.01, and t(0.975; 2) is 4.3027, so the interval
    # is 0.02 -+ 4.3027 * 0.01 / sqrt(3).
    assert differing[0]["final test accuracy"] == "+0.0200 (-0.0048 to +0.0448)"
    assert differing[0]["interval"] == "paired, 3 seeds"
    assert settings == [{"run": "a", "--patience": "5"}, {"run": "b", "--patience": "9"}]


# Student's own data (Biometrika 6, 1908): hours of sleep that ten patients gained by two drugs.
FIRST = dict(enumerate([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]))
SECOND = dict(enumerate([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]))


def ends_of(difference):
    """Return the ends of a confidence interval."""
    return difference.mean - difference.half_width, difference.mean + difference.half_width


def test_intervals_are_those_of_the_textbooks():
    paired = differences.difference(SECOND, FIRST)
    assert paired.method == "paired, 10 seeds"
    assert ends_of(paired) == pytest.approx((0.7001142, 2.4598858), abs=1e-7)
    others = {seed + 5: value for seed, value in SECOND.items()}  # half of the seeds are shared
    welch = differences.difference(others, FIRST)
    assert welch.method == "Welch, 10 and 10 seeds"
    assert ends_of(welch) == pytest.approx((-0.2054832, 3.3654832), abs=1e-7)
    few = {20: 1.0, 21: 2.0, 22: 4.0}
    unequal = differences.difference(few, FIRST)
    test = scipy.stats.ttest_ind(list(few.values()), list(FIRST.values()), equal_var=False)
    low, high = test.confidence_interval(0.95)
    assert unequal.method == "Welch, 10 and 3 seeds"
    assert ends_of(unequal) == pytest.approx((low, high))


def test_a_run_of_fewer_seeds_is_paired_with_the_same_seeds_of_the_other():
    found = differences.difference({2: 1.0, 3: 2.0}, {1: 9.0, 2: 0.5, 3: 1.0})
    assert (found.mean, found.method) == (pytest.approx(0.75), "paired, 2 seeds")


@pytest.mark.parametrize(
    ("of_each", "before", "text"),
    [
        ({0: 0.5}, {0: 0.5}, "+0.0000"),
        ({0: 0.5, 1: 0.7}, {5: 0.7}, "-0.1000"),
        ({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}, "+0.0000 (+0.0000 to +0.0000)"),
        ({0: 0.5, 1: 0.5}, {2: 0.75, 3: 0.75}, "-0.2500 (-0.2500 to -0.2500)"),
    ],
)
def test_one_seed_gives_no_interval_and_zero_variance_one_of_width_0(of_each, before, text):
    assert f"{differences.difference(of_each, before)}" == text


def test_the_accuracy_at_the_epoch_chosen_on_held_out_images_has_a_column(tmp_path, capsys):
    with_val = {"val": [[0.1, 0.9, 0.8, 0.7]], "val_fraction": "0.1"}
    first = make_run(tmp_path, "a", ONE, **with_val)
    second = make_run(tmp_path, "b", ONE)
    (results, _, settings), log = compared(capsys, first, second)
    assert [row["by val"] for row in results] == ["0.5000", "-"]
    assert [row["best"] for row in results] == ["0.7000", "0.7000"]
    assert [row["--val-fraction"] for row in settings] == ["0.1", "0.0"]
    assert "by val: at the epoch that is best on held-out images" in log


def test_a_warning_names_what_makes_runs_hard_to_compare(tmp_path, capsys):
    first = make_run(tmp_path, "a", ONE, dataset="mnist", test_examples="500", epochs="50")
    second = make_run(tmp_path, "b", [[0.1, 0.5, 0.7, 0.6], [0.1, 0.5, 0.7, 0.6], [0.1, 0.9]])
    ((_, row), _, settings), log = compared(capsys, first, second)
    assert [row["--seed"] for row in settings] == ["0", "0-2"]
    assert (row["seeds"], row["best"]) == ("2", "0.7000 ± 0.0000")
    for sentence in (
        "on different data sets: mnist (a), garments (b).",
        "scored on different test images: 500 (a), all (b).",
        "trained for different numbers of epochs: 50 (a), 3 (b).",
        "a has finished epoch 3 of 50: its final values are those of that epoch.",
        "b: 1 of 3 seeds ended earlier and are left out.",
    ):
        assert f"{sentence}\n" in log


def test_an_accuracy_counts_as_reached_in_spite_of_its_rounding(tmp_path, capsys):
    # What float32 makes of 0.8676.
    path = make_run(tmp_path, "a", [[0.1, 0.8675999641418457]])
    other = make_run(tmp_path, "b", [[0.1, 0.8]])
    ((row, below), *_), _ = compared(capsys, path, other, level=0.8676)
    assert (row["to 0.8676"], below["to 0.8676"]) == ("1", "-")


def test_runs_with_equal_names_get_longer_names(tmp_path, capsys):
    first, second = (make_run(tmp_path, f"2026010{day}-000000-a", ONE) for day in (1, 2))
    third, fourth = (make_run(tmp_path / folder, "b", ONE) for folder in "xy")
    show_comparison([first, second])
    printed = capsys.readouterr()
    assert "\n20260101-000000-a  " in printed.out
    assert "all settings that affect results are the same" in printed.err
    assert "--" not in printed.out
    show_comparison([third, fourth])
    assert f"\n{third.resolve()}  " in capsys.readouterr().out


def test_missing_timings_are_left_out_and_damaged_ones_are_refused(tmp_path, capsys):
    first, second = (make_run(tmp_path, name, ONE) for name in "ab")
    for path in (first, second):
        RunDirectory(path).timings.unlink()
    (results, *_), _ = compared(capsys, first, second)
    assert "seconds" not in results[0]
    RunDirectory(first).timings.write_text("{}\n")
    with pytest.raises(RunError, match="line 1 is damaged"):
        comparison.compare([first, second])


def test_unusable_arguments_are_refused_before_anything_is_printed(tmp_path, capsys):
    run, other = (make_run(tmp_path, name, ONE) for name in "ab")
    link = tmp_path / "latest"
    link.symlink_to("a")
    empty = make_run(tmp_path, "c", ONE)
    RunDirectory(empty).metrics.write_text("")
    for paths, picture, level, error, words in (
        ([run], None, None, ConfigError, "at least two runs, got 1"),
        ([run, other, link], None, None, ConfigError, "are the same run"),
        ([run, tmp_path], None, None, RunError, "not a run folder"),
        ([run, tmp_path / "none"], None, None, RunError, "there is no folder"),
        ([run, empty], None, None, RunError, "no epoch was finished"),
        ([run, other], None, 87.0, ConfigError, "got 87"),
        ([run, other], None, float("nan"), ConfigError, "got nan"),
        ([run, tmp_path], tmp_path / "compare.gif", None, ConfigError, "compare.gif"),
    ):
        with pytest.raises(error, match=words):
            show_comparison(paths, picture=picture, level=level)
    assert capsys.readouterr().out == ""
    with pytest.raises(StorageError):
        show_comparison([run, other], picture=tmp_path / "none" / "compare.png")


def test_the_command_prints_the_tables_and_draws_on_request(tmp_path):
    make_run(tmp_path, "a", ONE, drop_epochs=[[2]])
    make_run(tmp_path, "b", [[0.1, 0.6, 0.65], [0.1, 0.6, 0.66]])
    done = command("compare", "a", "b", "--plot", "compare.png", "--level", "0.6", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert "to 0.6" in done.stdout
    assert done.stdout.splitlines()[-1].split() == ["plot", "compare.png"]
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
    refused = command("compare", "a", "--level", "high", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
