"""benchmarks/reproduce/half_hour.py: it tries what pretrain takes, tunes on a held-out fifth, and chooses rightly.

The peers of half_hour_peers.py themselves are not installed here: what is ours about them is tested.
"""

import time

import click
import pytest
import torch
from click.testing import CliRunner
from test_reproduce_ablations import config_of

from benchmarks.reproduce import half_hour, half_hour_peers
from benchmarks.reproduce.half_hour import BASE, CANDIDATES, Bench, final, split, tune
from benchmarks.reproduce.queue_of_work import Work
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.files import write_json
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder
from mocoembed.model.precision import Compute
from mocoembed.train.run import encoder_spec, frozen_encoder

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
    assert len(differing) == (name != "base") + (name in ("batch-128", "batch-512", "mlp", "stem-3x3s1"))


def test_a_fifth_is_held_out(images, bench):
    learn, held_out = (scan(one) for one in split(str(images), bench.output))
    assert (len(learn), len(held_out)) == (19, 5)
    paths = [{bytes(listing.full_path(row)) for row in range(len(listing))} for listing in (learn, held_out)]
    assert not paths[0] & paths[1]
    assert set(held_out.label_names) <= {"blue", "green", "red"}
    again = [scan(one).digest() for one in split(str(images), bench.output)]
    assert again == [learn.digest(), held_out.digest()]


def test_gains_are_put_together_and_the_best_is_chosen(bench, images, monkeypatch):
    accuracies = {"tune-t-0.2": 52.0, "tune-lr-0.12": 51.0, "tune-lr-0.03": 53.0, "tune-width-0.5": 50.4,
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
    assert asked["tune-together"] == ["--lr", "0.12", "--temperature", "0.2", "--lr", "0.03"]
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


def test_a_peer_as_it_is_and_with_ours(bench, monkeypatch):
    write_json(bench.output / "chosen.json", {"options": ["--width", "0.25", "--lr", "0.03"]})
    commands = []
    monkeypatch.setattr(Work, "run", lambda self, command, log: commands.append(command[3:]) or
                        'Trainer says something\n{"knn_top1": 40.0, "epochs": 3, "minutes": 29.5}\n')
    results = half_hour.peer(bench, "train", "test", "solo-learn", "checkout")
    assert [one["name"] for one in results] == ["solo-learn-as-it-is", "solo-learn-with-ours"]
    common = ["solo-learn", "train", "test", "--minutes", "0.001", "--checkout", "checkout"]
    assert commands == [common, [*common, "--network", "0.25", "3x3s2", "256", "--ours"]]
    assert half_hour.peer(bench, "train", "test", "solo-learn", "checkout") == results
    assert len(commands) == 2  # what is there is not run again


def test_a_peer_gets_the_faster_loading_and_the_epochs_that_fit(images):
    asked = []

    class Peer:
        folder, backbone = str(images), None
        config = config_of([*BASE, "--epochs", "1", "--batch-size", "4", "--bn-groups", "1"])

        def train(self, epochs, workers, steps=None):
            asked.append((epochs, workers, steps))
            return {1: 12.0, 2: 6.0}[workers]  # for 6 steps: an epoch

    _, result = half_hour_peers.learn(Peer, 1.0)
    assert asked == [(1, 1, 12), (1, 2, 12), (9, 2, None)]  # 57 s of the minute, 6 s an epoch
    assert result == {"epochs": 9, "minutes": 0.1, "workers": 2}


def test_the_features_of_a_peer_are_those_that_our_embedder_gives(images):
    config = config_of([*BASE, "--epochs", "1", *TINY])
    encoder = Encoder(encoder_spec(config)).eval()
    ours = Embedder(frozen_encoder(encoder.state_dict(), config, {}), Compute.of("cpu", "fp32"), "backbone", True)
    found, labels = half_hour_peers.embedded(encoder.backbone, str(images), config)
    listing = scan(images)
    expected = torch.cat([ours(batch.pixels) for batch in evaluation_batches(listing, ours.frozen.transform, 8, 0)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert labels.tolist() == listing.labels.tolist()


def test_solo_learn_without_its_checkout_is_one_line(images):
    result = CliRunner().invoke(half_hour_peers.main, ["solo-learn", str(images), str(images)])
    assert result.exit_code == 2
    assert "give --checkout" in result.output
