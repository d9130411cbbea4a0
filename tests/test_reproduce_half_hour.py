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
from mocoembed.checks import to_dict
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.files import write_json
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder import Encoder
from mocoembed.model.precision import Compute
from mocoembed.train.run import encoder_spec, frozen_encoder

TWO_THINGS = ("batch-64", "batch-512", "mlp", "stem-3x3s1", "queue-256")
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
    assert len(differing) == (name != "base") + (name in TWO_THINGS)


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
    monkeypatch.setattr(half_hour.Compute, "slowness", lambda self: "bf16 is slow here")
    best = tune(bench, str(images))
    assert set(asked) == {f"tune-{name}" for name in (*CANDIDATES, "together") if name != "bf16"}
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
    with pytest.raises(click.UsageError, match=r"tiny.json is of another question: .* Remove it with its folder"):
        bench.measured("tiny", [*TINY, "--seed", "1"], str(images), str(images))
    (bench.output / "tiny.json").write_text("{")
    with pytest.raises(click.UsageError, match=r"tiny.json is damaged"):
        bench.measured("tiny", TINY, str(images), str(images))


def test_a_candidate_that_fails_is_left_out(bench, images, monkeypatch, capsys):
    def measured(self, name, options, learn, measure):
        if name == "tune-compile" or (name == "tune-base" and fails):
            raise RuntimeError("it ended with status 1")
        return {"name": name, "options": options, "knn_top1": 50.0}

    monkeypatch.setattr(Bench, "measured", measured)
    fails = False
    assert tune(bench, str(images))["name"] == "tune-base"
    assert "compile is left out: it ended with status 1" in capsys.readouterr().err
    fails = True
    with pytest.raises(click.ClickException, match="The base failed"):
        tune(bench, str(images))


def test_a_folder_without_images_is_one_line(tmp_path):
    result = CliRunner().invoke(half_hour.main, ["tune", str(tmp_path), "--output", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    assert "image" in result.output


def test_the_chosen_one_is_measured_with_three_seeds(bench, monkeypatch):
    with pytest.raises(click.UsageError, match="Run `tune` first"):
        final(bench, "train", "test")
    write_json(bench.output / "chosen.json", {"options": ["--lr", "0.03"]})
    monkeypatch.setattr(Bench, "measured", lambda self, *arguments: arguments)
    assert final(bench, "train", "test") == [
        (f"final-seed{seed}", ["--lr", "0.03", "--seed", str(seed)], "train", "test") for seed in half_hour.SEEDS]


def test_a_peer_as_it_is_and_with_ours(bench, monkeypatch):
    with pytest.raises(click.UsageError, match="Run `tune` first"):
        half_hour.peer(bench, "train", "test", "solo-learn", "checkout")
    write_json(bench.output / "chosen.json", {"name": "tune-t-0.2", "options": ["--temperature", "0.2"]})
    commands = []
    monkeypatch.setattr(Work, "run", lambda self, command, log: commands.append(command[3:]) or
                        'Trainer says something\n{"knn_top1": 40.0, "epochs": 3, "minutes": 29.5}\n')
    results = half_hour.peer(bench, "train", "test", "solo-learn", "checkout")
    assert [one["name"] for one in results] == ["solo-learn-as-it-is", "solo-learn-with-ours"]
    common = ["solo-learn", "train", "test", "--minutes", "0.001", "--checkout", "checkout"]
    assert commands == [common, [*common, "--ours", str(bench.output / "tune-t-0.2" / "runs" / "run" / "config.json")]]
    assert half_hour.peer(bench, "train", "test", "solo-learn", "checkout") == results
    assert len(commands) == 2  # what is there is not run again


def test_a_peer_gets_the_faster_loading_and_as_many_images_as_fill_the_time(images):
    asked = []

    class Peer:
        folder, backbone = str(images), None
        config = config_of([*BASE, "--epochs", "1", "--batch-size", "4", "--bn-groups", "1"])

        def train(self, epochs, rows, workers):
            asked.append((epochs, len(set(rows)), workers))
            steps = epochs * (len(rows) // 4)
            begin = [-30.0] if epochs == 1 else []  # workers begin: does not count in the trial
            return begin + [{1: 8.0, 2: 6.0}[workers] * step for step in range(steps - len(begin))]

    _, result = half_hour_peers.learn(Peer, 1.0)
    # 57 s of the minute at 6 s a step are 9.5 steps, 38 images: two epochs of 19 (whole batches: 16)
    assert asked == [(1, 24, 1), (1, 24, 2), (2, 19, 2)]
    assert result == {"epochs": 2, "limit": 19, "workers": 2, "minutes": pytest.approx(0.8)}


def test_a_run_of_ours_gives_a_peer_its_settings(tmp_path):
    config = config_of([*BASE, "--lr", "0.03", "--crop-scale", "0.2,1.0", "--epochs", "3"])
    write_json(tmp_path / "config.json", {**to_dict(config), "started_from": None})
    assert half_hour_peers.config_of(str(tmp_path / "config.json")) == config


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
