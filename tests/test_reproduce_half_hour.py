"""benchmarks/reproduce/half_hour.py: it tries what pretrain takes, tunes on a held-out fifth, and chooses rightly."""

import time

import click
import pytest
from test_reproduce_ablations import config_of

from benchmarks.reproduce import half_hour
from benchmarks.reproduce.half_hour import BASE, CANDIDATES, Bench, final, split, tune
from benchmarks.reproduce.queue_of_work import Work
from mocoembed.data.images import scan
from mocoembed.files import write_json

TINY = ["--batch-size", "16", "--bn-groups", "2", "--width", "0.125", "--precision", "fp32"]


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "half-hour", 0.001, Work(time.monotonic() + 600, threads=1))


@pytest.mark.parametrize("name", CANDIDATES)
def test_pretrain_takes_every_candidate(name):
    config = config_of([*BASE, *CANDIDATES[name], "--epochs", "3"])
    assert (config.recipe, config.epochs) == ("cifar10", 3)
    differing = {field for field in vars(config)
                 if getattr(config, field) != getattr(config_of([*BASE, "--epochs", "3"]), field)}
    assert len(differing) == (name != "base") + (name in ("batch-128", "mlp"))


def test_a_fifth_is_held_out(images, bench):
    learn, held_out = (scan(one) for one in split(str(images), bench.output))
    assert (len(learn), len(held_out)) == (19, 5)
    paths = [{bytes(listing.full_path(row)) for row in range(len(listing))} for listing in (learn, held_out)]
    assert not paths[0] & paths[1]
    assert set(held_out.label_names) <= {"blue", "green", "red"}
    again = [scan(one).digest() for one in split(str(images), bench.output)]
    assert again == [learn.digest(), held_out.digest()]


def test_gains_are_put_together_and_the_best_is_chosen(bench, images, monkeypatch):
    accuracies = {"tune-k-256": 52.0, "tune-lr-0.12": 51.0, "tune-lr-0.03": 53.0, "tune-width-0.5": 50.4,
                  "tune-together": 55.0}
    asked = {}

    def measured(self, name, options, learn, measure):
        asked[name] = options
        assert measure.endswith("held-out.txt")
        return {"name": name, "options": options, "knn_top1": accuracies.get(name, 50.0)}

    monkeypatch.setattr(Bench, "measured", measured)
    best = tune(bench, str(images))
    assert set(asked) == {f"tune-{name}" for name in (*CANDIDATES, "together")}
    # of the two learning rates the better one comes last, and counts
    assert asked["tune-together"] == ["--lr", "0.12", "--queue-size", "256", "--lr", "0.03"]
    assert best["name"] == "tune-together"
    assert bench.kept("chosen") == best


def test_a_candidate_for_real_and_kept(bench, images):
    result = bench.measured("tiny", TINY, str(images), str(images))
    assert (result["epochs"], result["options"]) == (1, TINY)
    assert 0 <= result["knn_top1"] <= 100
    assert result["minutes"] > 0
    bench.work.stop()
    assert bench.measured("tiny", TINY, str(images), str(images)) == result


def test_the_chosen_one_is_measured_with_three_seeds(bench, monkeypatch):
    with pytest.raises(click.UsageError, match="Run `tune` first"):
        final(bench, "train", "test")
    write_json(bench.output / "chosen.json", {"options": ["--lr", "0.03"]})
    monkeypatch.setattr(Bench, "measured", lambda self, *arguments: arguments)
    assert final(bench, "train", "test") == [
        (f"final-seed{seed}", ["--lr", "0.03", "--seed", str(seed)], "train", "test") for seed in half_hour.SEEDS]
