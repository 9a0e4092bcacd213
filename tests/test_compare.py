"""plateau-train compare: its numbers, compared with those computed by hand, and its errors."""

import json

import numpy as np
import pytest
import scipy
from helpers import call, command, make_history, resolve, write_lines

import plateau_train as pt
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


@pytest.mark.parametrize(
    ("freedom", "values"),
    [
        (5, (2.57, 3.03, 3.29, 3.48)),
        (10, (2.23, 2.57, 2.76, 2.89)),
        (1e9, (1.96, 2.21, 2.35, 2.44)),
    ],
)
def test_critical_values_are_those_of_the_table_of_dunnett(freedom, values):
    found = [differences.critical_value(count, freedom) for count in (1, 2, 3, 4)]
    assert [round(value, 2) for value in found] == list(values)


def test_corrected_intervals_are_those_of_dunnett_for_independent_samples():
    samples = np.random.default_rng(0).normal(size=(4, 6))
    test = scipy.stats.dunnett(*samples[1:], control=samples[0], rng=np.random.default_rng(0))
    interval = test.confidence_interval()
    error = (samples.var(axis=1, ddof=1).mean() * 2 / 6) ** 0.5
    half_widths = (interval.high - interval.low) / 2
    # SciPy integrates with random numbers.
    assert half_widths == pytest.approx(differences.critical_value(3, 20) * error, rel=2e-3)


def test_four_paired_intervals_of_four_seeds_hold_together_in_92_5_percent():
    values = np.random.default_rng(0).normal(size=(100_000, 5, 4))
    pairs = values[:, 1:] - values[:, :1]
    statistic = abs(pairs.mean(axis=2)) / (pairs.std(axis=2, ddof=1) / 2)
    held = [
        (statistic < differences.critical_value(count, 3)).all(axis=1).mean() for count in (4, 1)
    ]
    # Dunnett's value is exact for one standard deviation of all; here each pair has its own.
    assert held == pytest.approx([0.925, 0.83], abs=0.005)


@pytest.mark.parametrize(("effect", "count"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_numbers_of_seeds_are_those_of_the_tables_of_power(effect, count):
    # Cohen (1988), and G*Power: two-sided paired t-test at 5 %, power 0.8.
    assert differences.num_pairs(effect, 1.0) == count
    assert differences.num_pairs(-effect / 100, 0.01) == count


@pytest.mark.parametrize("ratio", [0.1, 0.3, 3.0, 70.0, 5000.0])
def test_a_number_of_seeds_is_the_smallest_with_the_power(ratio):
    count = differences.num_pairs(0.01, 0.01 * ratio) or 0

    def power(number):
        critical = scipy.stats.t.ppf(0.975, number - 1)
        shifted = scipy.stats.nct(number - 1, number**0.5 / ratio)
        return shifted.sf(critical) + shifted.cdf(-critical)

    assert power(count) >= 0.8
    assert count == 2 or power(count - 1) < 0.8


def test_only_paired_runs_that_differ_have_numbers_of_seeds():
    def seeds(values, baseline):
        found = differences.difference(values, baseline)
        return found.seeds_for_0_001, found.seeds_for_difference

    # Differences 0.01, 0.02, 0.03: sd 0.01, so 10 and 0.5 of it.
    values, baseline = {0: 0.61, 1: 0.64, 2: 0.67}, {0: 0.6, 1: 0.62, 2: 0.64}
    assert seeds(values, baseline) == (787, 5)
    assert seeds({0: 0.1, 1: 0.3}, {0: 0.3, 1: 0.1 + 1e-16}) == (627_911, None)
    assert seeds({0: 0.5, 1: 0.5}, {0: 0.5, 1: 0.5}) == (2, None)
    assert seeds({0: 0.5, 1: 0.7}, {5: 0.7, 6: 0.1}) == (None, None)
    assert seeds({0: 0.5}, {0: 0.7}) == (None, None)


def test_intervals_of_several_runs_against_one_are_corrected(tmp_path):
    two = [[0.1, 0.6], [0.1, 0.62]]
    paths = [make_run(tmp_path, name, two, patience=f"{n}") for n, name in enumerate("abc", 1)]
    paths.append(make_run(tmp_path, "d", ONE))
    compared = comparison.compare(paths)
    methods = [row["method"] for row in compared.difference_rows()[::2]]
    assert methods == ["paired, 2 seeds, Dunnett for 2 runs"] * 2 + ["none: a single seed"]
    _, table, _ = compared.tables()
    assert "over seeds, corrected for 2 runs (Dunnett); seeds: " in table.caption
    _, table, _ = comparison.compare([paths[0], paths[1], paths[3]]).tables()
    assert "Dunnett" not in table.caption


def test_runs_that_differ_in_their_seed_alone_are_pooled_on_request(tmp_path, capsys):
    one = make_run(tmp_path, "a", [[0.1, 0.60], [0.1, 0.62]])
    two = make_run(tmp_path, "a2", [[0.1, 0.64]], first=2, threads="1", runs_dir="other")
    other = make_run(tmp_path, "b", [[0.1, 0.61], [0.1, 0.64], [0.1, 0.67]], patience="9")
    (results, differing, settings), log = compared(capsys, one, two, other, pool=True)
    assert [(row["run"], row["seeds"]) for row in results] == [("a (2 runs)", "3"), ("b", "3")]
    assert (results[0]["final"], results[0]["seconds"]) == ("0.6200 ± 0.0200", "402")
    assert differing[0]["final test accuracy"] == "+0.0200 (-0.0048 to +0.0448)"
    assert (differing[0]["seeds for 0.001"], differing[0]["seeds for it"]) == ("787", "5")
    assert settings[0] == {"run": "a (2 runs)", "--patience": "5"}
    assert "NOTICE" not in log
    rows = json.loads(call("compare", one, two, other, "--pool", "--json"))["results"]
    assert [(row["run"], row["replica"], row["seed"], row["num_runs"]) for row in rows[:4]] == [
        ("a", 0, 0, 2), ("a", 1, 1, 2), ("a", 2, 2, 2), ("b", 0, 0, 1),
    ]  # fmt: skip
    assert [row["folder"] for row in rows[1:4]] == [str(one), str(two), str(other)]


def test_a_pool_counts_the_seeds_and_epochs_that_are_missing(tmp_path, capsys):
    one = make_run(tmp_path, "a", [[0.1, 0.6, 0.7], [0.1, 0.6]], epochs="3")
    two = make_run(tmp_path, "b", [[0.1, 0.6, 0.7, 0.8]], first=2, epochs="3")
    other = make_run(tmp_path, "c", [[0.1, 0.6, 0.7, 0.8]], patience="9")
    _, log = compared(capsys, one, two, other, pool=True)
    assert "/a has finished epoch 2 of 3" in log
    assert "/b has finished" not in log
    assert "a: 1 of 3 seeds ended earlier and are left out.\n" in log


def test_runs_that_cannot_be_pooled_are_refused(tmp_path):
    one, two = (make_run(tmp_path, name, ONE, first=first) for first, name in enumerate("ab"))
    again = make_run(tmp_path, "c", [[0.1, 0.6], [0.1, 0.7]], first=1, epochs="3")
    with pytest.raises(ConfigError, match=r"two runs, and these 2 differ in their seed") as error:
        pt.compare(one, two, pool=True)
    assert error.value.hint.startswith("leave out pool to compare")
    with pytest.raises(ConfigError, match=r"/b and .*/c have the same .* both have seed 1: "):
        comparison.compare([one, two, again], pool=True)


def test_data_that_have_moved_are_the_same_and_others_are_not(tmp_path, capsys):
    one = make_run(tmp_path, "a", ONE, dataset="/old/images", sha256="1")
    two = make_run(tmp_path, "b", ONE, dataset="/new/images", sha256="1", first=1)
    (*_, settings), log = compared(capsys, one, two)
    assert [settings, "NOTICE" in log] == [
        [{"run": "a", "--seed": "0"}, {"run": "b", "--seed": "1"}], False,
    ]  # fmt: skip
    other = make_run(tmp_path, "b2", ONE, dataset="/old/others", sha256="2")
    ((first, _), *_), log = compared(capsys, one, two, other, pool=True)
    assert first["run"] == "a (2 runs)"
    assert "on different data sets: images (a), others (b2).\n" in log
    changed = make_run(tmp_path, "c", ONE, dataset="/old/images", sha256="3")
    assert len(comparison.compare([one, two, changed], pool=True).runs) == 2


def test_a_run_of_fewer_seeds_is_paired_with_the_same_seeds_of_the_other():
    found = differences.difference({2: 1.0, 3: 2.0}, {1: 9.0, 2: 0.5, 3: 1.0})
    assert (found.mean, found.method) == (pytest.approx(0.75), "paired, 2 seeds")


@pytest.mark.parametrize(
    ("of_each", "before", "text"),
    [
        ({0: 0.5}, {0: 0.5}, "+0.0000"),
        ({0: 0.5, 1: 0.7}, {5: 0.7}, "-0.1000"),
        ({0: 0.5}, {0: 0.5, 1: 0.7}, "+0.0000"),
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
    fifth = make_run(tmp_path / "other" / "x", "b", ONE)
    show_comparison([first, second])
    printed = capsys.readouterr()
    assert "\n20260101-000000-a  " in printed.out
    assert "all settings that affect results are the same" in printed.err
    assert "--" not in printed.out
    show_comparison([third, fourth])
    assert "\nx/b  " in capsys.readouterr().out
    show_comparison([third, fifth])
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
