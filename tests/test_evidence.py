"""Tables and pictures of the pages from stored trainings: what is chosen, and what stands there."""

import evidence
import pytest
from evidence import Evidence, Published, Replica

RATES = (0.001, 0.01)


def make_replica(schedule, rate, seed, val, test, drops=()):
    metrics = {"val_accuracy": val, "test_accuracy": test}
    return Replica(
        schedule=schedule, mode="train-loss", learning_rate=rate, seed=seed,
        drop_epochs=list(drops), metrics=metrics,
    )  # fmt: skip


@pytest.fixture
def tuned():
    """Two schedules at two rates with two seeds; the best epoch is the second of three."""

    def train(schedule, gain, drops):
        return Evidence(
            command="plateau-train sweep", machine="a machine",
            replicas=[
                make_replica(
                    schedule, rate, seed, [0.1, 0.8 + own, 0.8 + own],
                    [0.1, 0.7 + own + 0.01 * seed, 0.9], drops,
                )
                for rate, own in zip(RATES, (0.0, gain), strict=True)
                for seed in (0, 1)
            ],
        )  # fmt: skip

    return {"constant": train("constant", -0.1, ()), "train-loss": train("plateau", 0.05, (1, 2))}


def test_rates_and_epochs_are_chosen_on_held_out_images(tuned):
    assert evidence.best_rates(tuned) == {"constant": 0.001, "train-loss": 0.01}
    assert {each.chosen_epoch for each in tuned["constant"].replicas} == {1}
    constant, rule = evidence.tuned_table(tuned).splitlines()[2:]
    assert constant == ("| constant | 0.001 | 0.8000 ± 0.0000 | 0.7050 ± 0.0071 |  | 1 ± 0 |  |")
    assert rule == (
        "| train-loss | 0.01 | 0.8500 ± 0.0000 | 0.7550 ± 0.0071 | +0.0500 (+0.0500 to +0.0500) "
        "| 1 ± 0 | 2.0 ± 0.0 |"
    )
    rates = evidence.best_rates(tuned)
    best = {name: evidence.at_rate(each, rates[name], {0, 1}) for name, each in tuned.items()}
    by_budget = {5: best, 50: best}
    _, _, constant, rule = evidence.budget_table(by_budget).splitlines()
    assert constant == "| constant | 0.7050 ± 0.0071 | 0.7050 ± 0.0071 |"
    assert rule == "| train-loss | 0.7550 ± 0.0071 | 0.7550 ± 0.0071 |"
    for panel in evidence.draw_tuned(tuned, by_budget).axes:
        assert [bars.get_label() for bars in panel.containers] == ["constant", "train-loss"]


def test_a_prediction_interval_holds_one_more_value():
    low, high = evidence.prediction_interval([1.0, 2.0, 3.0])
    # 4.302653 is the 97.5 % quantile of Student's t with two degrees of freedom.
    assert (low, high) == pytest.approx(
        (2 - 4.302653 * (4 / 3) ** 0.5, 2 + 4.302653 * (4 / 3) ** 0.5)
    )


def test_the_published_run_stands_beside_the_spread_of_many_seeds():
    def train(last):
        metrics = {"train_accuracy": [0.1, last], "test_accuracy": [0.1, last - 0.1]}
        return Replica(
            schedule="plateau", mode="train-loss", learning_rate=0.01, seed=0, drop_epochs=[1],
            metrics=metrics,
        )  # fmt: skip

    replicas = [train(last) for last in (0.90, 0.91, 0.92)]
    for mode, first_epoch in (("train-loss", "1.0"), ("test-loss", "2.0")):
        trained = {mode: Evidence(command="", machine="", replicas=replicas)}
        for accuracy, place in ((0.9263, "inside"), (0.99, "above"), (0.5, "below")):
            published = {mode: Published({1: 0.8, 50: accuracy}, (1, 28))}
            table = evidence.spread_table(trained, published)
            mean, span, interval, single = table.splitlines()[2:]
            assert "| 0.9100 ± 0.0100 | 0.8100 ± 0.0100 | 1.0 ± 0.0 |" in mean
            assert mean.endswith(f"| {first_epoch} ± 0.0 |")
            assert "| 0.9000 to 0.9200 | 0.8000 to 0.8200 | 1 to 1 |" in span
            assert interval.count(" to ") == 4
            assert f"| {accuracy:.4f}, {place} | not published | 2, above | 1, " in single
        assert len(evidence.draw_spread(trained, published).axes) == 1


def test_stored_trainings_are_read_and_not_trained_again(tmp_path, monkeypatch, tuned):
    monkeypatch.setattr(evidence, "STORED", tmp_path)
    (tmp_path / "tuned.json").write_text(tuned["constant"].model_dump_json())
    assert evidence.obtain(tmp_path / "none", "tuned", evidence.SCORES) == tuned["constant"]
