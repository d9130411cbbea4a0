"""`mocoembed linear --protocol`: against a loop by hand, resumed, with a backbone that changes, and wrong input."""

import functools
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from killing import Run as Killed
from torch import nn

from mocoembed.cli import linear as output
from mocoembed.config import ProbeConfig
from mocoembed.data.augmentation import augmented
from mocoembed.errors import CollectionError, FormatError, Interrupted, TrainingError, UsageError
from mocoembed.evaluate.images import baselines as image_baselines
from mocoembed.evaluate.images import probe as module
from mocoembed.evaluate.images import probing
from mocoembed.evaluate.images.frozen_backbone import FrozenBackbone
from mocoembed.evaluate.images.labelled import labelled_images, training_batches
from mocoembed.evaluate.images.probe import probe_accuracy
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import save_encoder
from mocoembed.model.precision import Compute

CPU = Compute.of("cpu", "fp32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_images):
    """TRAIN with 30 images, TEST with 12."""
    root = tmp_path_factory.mktemp("folders")
    return str(make_images(root / "train", 10, 1)), str(make_images(root / "test", 4, 2))


@pytest.fixture
def measured(folders, fresh_workspace):
    """`measured(**options)`: the result for TRAIN and TEST, three epochs of batches of 8 unless told otherwise."""
    def measure(progress=lambda done, total: None, note=lambda text: None, **options):
        given = {"train": folders[0], "test": folders[1], "epochs": 3, "batch_size": 8, "workers": 0, "device": "cpu",
                 "lr": (0.01, 0.1, 1.0), "protocol": "moco", "baselines": False, "workspace": str(fresh_workspace),
                 **options}
        return probe_accuracy(ProbeConfig(**given), progress, note)

    return measure


def facts(result) -> dict:
    """The result without its time."""
    found = result.as_json()
    del found["seconds"]
    return json.loads(json.dumps(found))


def by_hand(frozen, folder: str, how, rate: float):
    """A classifier that learns as main_lincls.py does, from the views that are drawn for these steps."""
    images, known = labelled_images(folder, "TRAIN"), ["blue", "green", "red"]
    model = nn.Sequential(frozen.encoder.backbone, nn.Linear(64, 3)).eval()
    model[1].load_state_dict(probing.Heads(64, 3, ProbeConfig("moco", folder).published, (rate,), 0)
                             .everything[0].state_dict())
    optimizer = torch.optim.SGD(model[1].parameters(), rate, momentum=0.9)
    losses = []
    for batch in training_batches(images, how, 0, 0, False):
        optimizer.param_groups[0]["lr"] = rate * 0.1 ** sum(batch.epoch >= one for one in (2, 2))  # 1.8 and 2.4 of 3
        loss = nn.functional.cross_entropy(model(augmented(batch, how, torch.device("cpu"))),
                                           images.classes(batch.rows.tolist(), known))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return model[1], losses


def test_the_number_is_that_of_a_loop_by_hand(measured, folders, make_encoder):
    result = measured(lr=(0.1,))
    frozen = make_encoder()
    how = probing.augmentation(ProbeConfig("moco", folders[0], epochs=3, batch_size=8), frozen.transform, 0)
    head, losses = by_hand(frozen, folders[0], how, 0.1)
    assert np.allclose(np.reshape(losses, (3, 4)).mean(axis=1), [one for one, in result.repeats[0].losses], atol=1e-5)
    shown = module.encoded(labelled_images(folders[1], "TEST"), frozen.transform,
                           Embedder(frozen, CPU, "backbone", normalized=False), 0).vectors
    with torch.no_grad():
        shares = head(shown).softmax(dim=1).numpy()
    assert np.allclose(result.repeats[0].shares, shares, atol=1e-4)
    right = shares.argmax(axis=1) == np.repeat([0, 1, 2], 4)
    assert result.values["top1"].value == pytest.approx(100 * right.mean())
    assert result.repeats[0].chosen.tried == []
    assert facts(result)["protocol"]["chosen"] == {}


def test_the_rate_is_chosen_on_images_that_are_not_learned_from(measured):
    result = measured()
    found = facts(result)["protocol"]
    assert [one["lr"] for one in found["scores"]] == [0.01, 0.1, 1.0]
    scores = [one["score"] for one in found["scores"]]
    assert found["chosen"] == {"lr": result.config.rates[int(np.argmax(scores))], "held_out": 6}
    assert found["at_edge"] == (int(np.argmax(scores)) != 1)


def test_permuted_test_labels_change_nothing_that_was_chosen(measured, folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "mixed")
    for name, other in (("red", "x"), ("blue", "red"), ("x", "blue")):
        (tmp_path / "mixed" / name).rename(tmp_path / "mixed" / other)
    one, other = measured(), measured(test=str(tmp_path / "mixed"), fresh=True)
    assert one.repeats[0].chosen.tried == other.repeats[0].chosen.tried
    assert one.repeats[0].losses == other.repeats[0].losses
    assert one.values["ap"].value != other.values["ap"].value


def test_the_test_images_are_shown_once_after_all_is_chosen(measured, folders, monkeypatch):
    shown, real = [], module.encoded

    def encoded(images, *rest):
        shown.append(str(images.path))
        return real(images, *rest)

    monkeypatch.setattr(module, "encoded", encoded)
    measured()
    assert shown == [folders[0], folders[1]]


@pytest.mark.parametrize("after", [2, 5, 12])
def test_stopped_it_goes_on_to_the_same_result(measured, after):
    expected, seen = facts(measured()), 0

    def stop(done, total):
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=f"Stopped after step {after} of 12; saved in"):
        measured(stop, fresh=True)
    notes = []
    assert facts(measured(note=notes.append)) == expected
    assert notes[0].startswith(f"going on after step {after} of 12" if after < 12 else "learned before, in 12 steps")


def test_killed_it_goes_on_from_the_last_checkpoint(measured, fresh_workspace, monkeypatch):
    monkeypatch.setattr(probing, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    expected = facts(measured(fresh=True))
    seen = []

    class Killed(BaseException):
        pass

    def kill(done, total):
        seen.append(done)
        if len(seen) == 7:
            raise Killed

    with pytest.raises(Killed):
        measured(kill, fresh=True)
    notes = []
    assert facts(measured(note=notes.append)) == expected
    assert notes[0].startswith("going on after step 6 of 12")
    assert not list(fresh_workspace.glob("linear/*/.*"))


def test_a_live_batchnorm_is_caught(measured, monkeypatch):
    real = FrozenBackbone.__init__

    def alive(self, *arguments):
        real(self, *arguments)
        self.network.train()

    monkeypatch.setattr(FrozenBackbone, "__init__", alive)
    with pytest.raises(TrainingError, match="BatchNorm statistics have changed"):
        measured()


def test_a_weight_that_changes_is_caught(make_encoder):
    backbone = FrozenBackbone(make_encoder(), CPU)
    assert backbone.require_unchanged() == backbone.before
    backbone.network.conv1.weight.data[0, 0, 0, 0] += 1e-6
    with pytest.raises(TrainingError, match="backbone's weights have changed"):
        backbone.require_unchanged()


def test_features_are_raw_and_those_of_the_embedder(make_encoder):
    frozen, pixels = make_encoder(), torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    features = FrozenBackbone(frozen, CPU).encode(pixels)
    raw = Embedder(frozen, CPU, "backbone", normalized=False)(pixels)
    torch.testing.assert_close(features, raw, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(features.norm(dim=1), torch.ones(5), atol=1e-2)


def test_the_stamp_says_that_the_backbone_stayed_as_it_was(measured):
    stamp = facts(measured())["solver"]["backbone"]
    assert stamp["sha256_before"] == stamp["sha256_after"]
    assert stamp["batchnorm_before"] == stamp["batchnorm_after"] != stamp["sha256_before"]
    assert stamp["batchnorm_layers"] == 20


def test_without_test_a_stratified_fifth_of_train_is_tested(measured):
    result = measured(test=None)
    assert len(result.train.names) == 24
    assert len(result.test.names) == 6
    assert not set(result.train.digests.tolist()) & set(result.test.digests.tolist())
    assert facts(result)["protocol"]["settings"]["test"].startswith("a stratified fifth")


def test_copies_on_both_sides_are_counted(measured, folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "test")
    shutil.copy(f"{folders[0]}/red/000.png", tmp_path / "test" / "red" / "again.png")
    result = measured(test=str(tmp_path / "test"))
    assert facts(result)["data"]["overlap"]["identical"] == 1
    assert "1 of the test images have the same bytes" in result.notes()[0]


@pytest.mark.parametrize("protocol", ["dino", "lightly"])
def test_other_protocols(measured, protocol):
    told = []
    result = measured(lambda done, total: told.append((done, total)), protocol=protocol)
    assert facts(result)["protocol"]["name"] == f"linear, {protocol}"
    assert len(result.repeats[0].losses) == 3
    steps = 3 * (3 if protocol == "lightly" else 4)  # lightly leaves out what does not fill a batch
    assert len(told) == steps + 2
    assert told[-1][0] == told[-1][1]
    assert result.repeats[0].losses != measured().repeats[0].losses


def test_few_labels(measured):
    result = measured(labels="4-per-class", seeds=1)
    assert len(result.train.names) == 12
    with pytest.raises(CollectionError, match="Give more images, or one --lr, for example 30"):
        measured(labels="1-per-class")
    assert measured(labels="1-per-class", lr=(30.0,), seeds=1).repeats[0].chosen.tried == []


def test_seeds_are_what_each_gives_alone(measured):
    """Each with its own labels, rate and weights; the number is their mean, and so is what each image counts for."""
    together = measured(labels="4-per-class", seeds=3)
    alone = [measured(labels="4-per-class", seeds=1, seed=seed) for seed in range(3)]
    for one, repeat in zip(alone, together.repeats):
        assert repeat.losses == one.repeats[0].losses
        assert repeat.chosen == one.repeats[0].chosen
        assert np.array_equal(repeat.shares, one.repeats[0].shares)
    assert together.repeats[0].losses != together.repeats[1].losses
    top1 = together.values["top1"]
    assert top1.value == pytest.approx(np.mean([one.values["top1"].value for one in alone]))
    assert (top1.method, top1.n) == ("Student's t over repeats", 3)
    found = facts(together)
    assert [one["seed"] for one in found["repeats"]] == [0, 1, 2]
    assert found["protocol"]["chosen"]["lr"] == [one.repeats[0].lr for one in alone]
    assert 100 * np.mean(found["outcomes"]["top1"]) == pytest.approx(top1.value, abs=1e-3)
    assert f"{len(together.test.names)} images, learned from 12, 3 seeds; 3 classes" in together.summary()


def test_the_held_out_images_of_a_seed_alone_choose_its_rate(measured, monkeypatch):
    """What is shown to choose by is what the seed held out, whatever the other seeds learn from."""
    seen, real = [], probing.Probe.choose

    def choose(self, vectors, readable):
        seen.append((self.seed, self.held_out_rows.tolist(), vectors))
        return real(self, vectors, readable)

    monkeypatch.setattr(probing.Probe, "choose", choose)
    result = measured(seeds=2)
    assert [seed for seed, _, _ in seen] == [0, 1]
    assert seen[0][1] != seen[1][1]
    for _, rows, vectors in seen:
        unit = nn.functional.normalize(vectors, dim=1)
        torch.testing.assert_close(unit, result.train.vectors[torch.tensor(rows)])


def test_another_metric_learns_nothing_again(measured, monkeypatch):
    first = measured()
    monkeypatch.setattr(probing.Probe, "learn_from", pytest.fail)
    notes = []
    again = measured(metric="balanced", note=notes.append)
    assert notes[0].startswith("learned before, in 12 steps (")
    assert again.repeats[0].losses == first.repeats[0].losses
    assert facts(again)["protocol"]["settings"]["metric"] == "balanced"


def test_baselines_are_learned_from_the_same_images(measured):
    result = measured(baselines=None)
    found = result.baselines.found
    assert list(found) == ["majority class", "raw pixels", "colour histogram", "HOG", "untrained encoder"]
    assert found["colour histogram"].values["top1"].value == 100  # of three plain colours
    assert found["majority class"].values["top1"].value == pytest.approx(100 / 3)
    assert [one["name"] for one in facts(result)["baselines"]] == list(found)
    few = measured(labels="1-per-class", lr=(30.0,), seeds=2, baselines=True)  # no second image to choose a penalty on
    assert few.baselines.found["raw pixels"].values["top1"].n == 2
    assert list(measured().baselines.found) == ["majority class"]


def test_features_that_are_not_finite_are_said_to_be_the_encoders(measured, make_encoder, monkeypatch):
    frozen = make_encoder()
    frozen.encoder.backbone.conv1.weight.data[0, 0, 0, 0] = float("nan")
    monkeypatch.setattr(module, "open_encoder", lambda *rest: frozen)
    with pytest.raises(FormatError, match=r"encoder holds values that are not finite in 1 of its tensors \(conv1"):
        measured()
    frozen.encoder.backbone.conv1.weight.data[0, 0, 0, 0] = 3e38
    with pytest.raises(TrainingError, match=r"The encoder gives \d of 8 images features that are not finite"):
        measured()


def test_what_is_wrong_with_an_option_is_said_before_an_image_is_read(measured, monkeypatch):
    monkeypatch.setattr(module, "both_sides", pytest.fail)
    for options, message in (({"labels": "0%"}, "--labels 0%: must be a share"),
                             ({"device": "gpu"}, "--device gpu: must be"),
                             ({"device": "cuda:7"}, "not on this machine"),
                             ({"encoder": "none"}, "'none' does not exist")):
        with pytest.raises(UsageError, match=message):
            measured(**options)


def test_lightly_with_fewer_images_than_a_batch_says_that_none_are_dropped(measured):
    stamp = facts(measured(protocol="lightly", batch_size=64))["protocol"]["settings"]
    assert stamp["drop_last"] is False
    assert facts(measured(protocol="lightly"))["protocol"]["settings"]["drop_last"] is True


def die_at(place, count):
    """In the process that is to be killed: after each step a checkpoint, and the end when `place` is reached `count`
    times: a step, a checkpoint or an image that is shown."""
    probing.SECONDS_BETWEEN_CHECKPOINTS = -1.0
    real, taken = getattr(*PLACES[place]), []

    def killed(*arguments, **options):
        found = real(*arguments, **options)
        taken.append(1)
        if len(taken) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(*PLACES[place], killed)


PLACES = {"step": (probing.Probe, "learn_from"), "checkpoint": (probing, "save_checkpoint"),
          "shown": (FrozenBackbone, "encode"), "baseline": (image_baselines, "measure"),
          "result": (output, "put_result")}


def test_killed_at_any_moment_the_same_command_ends_the_same(tmp_path, folders, make_encoder):
    """Two seeds of 8 steps: within the first and the second, after their checkpoints, when images are shown, in the
    baselines, and before the result is printed."""
    save_encoder(tmp_path / "encoder.safetensors", make_encoder())
    given = ["linear", *folders, "--encoder", tmp_path / "encoder.safetensors", "--protocol", "moco", "--epochs", 4,
             "--batch-size", 8, "--lr", "0.1,1,30", "--labels", "5-per-class", "--seeds", 2, "--workers", 0, "--device",
             "cpu", "--json"]

    def result_of(run):
        found = json.loads((run.folder / "stdout").read_text())
        return {name: found[name] for name in ("protocol", "data", "results", "repeats", "solver", "outcomes",
                                               "confusion", "baselines", "per_class")}

    whole = Killed(tmp_path / "whole", *given, "--workspace", tmp_path / "ws-whole").go()
    assert whole.wait() == 0, whole.stderr
    for number, moment in enumerate([("step", 1), ("step", 5), ("checkpoint", 8), ("step", 11), ("checkpoint", 16),
                                     ("shown", 1), ("shown", 2), ("baseline", 3), ("result", 1)]):
        workspace = tmp_path / f"ws-{number}"
        run = Killed(tmp_path / f"killed-{number}", *given, "--workspace", workspace,
                     prepare=functools.partial(die_at, *moment)).go()
        assert run.wait() == -signal.SIGKILL, moment
        again = Killed(tmp_path / f"again-{number}", *given, "--workspace", workspace).go()
        assert again.wait() == 0, again.stderr
        assert result_of(again) == result_of(whole), moment
        said = (again.folder / "stderr").read_text()
        known = "going on after step" in said or "learned before, in" in said
        assert known == (moment != ("step", 1)), moment
        assert ("baselines kept from before" in said) == (moment[0] in ("baseline", "result")), moment


def test_unreadable_images_are_named_and_do_not_count(measured, folders, tmp_path):
    for side, number in zip(folders, (3, 2)):
        shutil.copytree(side, tmp_path / str(number))
        (tmp_path / str(number) / "green" / "001.jpg").write_bytes(b"no image")
    notes = []
    result = measured(train=str(tmp_path / "3"), test=str(tmp_path / "2"), note=notes.append)
    assert len(result.test.names) == 11
    assert [note.split(",")[0] for note in notes] == ["unreadable"] * 3


def test_wrong_input(measured, folders, tmp_path):
    shutil.copytree(f"{folders[0]}/red", tmp_path / "one" / "red")
    with pytest.raises(CollectionError, match="has one class, 'red'"):
        measured(train=str(tmp_path / "one"))
    shutil.copytree(folders[1], tmp_path / "more")
    shutil.copytree(f"{folders[0]}/red", tmp_path / "more" / "rose")
    with pytest.raises(CollectionError, match=r"has the class 'rose', of which .* has no image"):
        measured(test=str(tmp_path / "more"))
    with pytest.raises(UsageError, match="does not exist"):
        measured(test=str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match=r"train.h5 is an embeddings file, and --protocol moco learns from images"):
        measured(train="train.h5")
    with pytest.raises(UsageError, match="--labels none: must be a share"):
        measured(labels="none")
    with pytest.raises(UsageError, match="--protocol fast: must be one of moco, dino, lightly"):
        measured(protocol="fast")


def test_the_command_line(folders, fresh_workspace, run_cli, tmp_path):
    given = ["linear", *folders, "--workspace", fresh_workspace, "--workers", 0, "--device", "cpu"]
    options = ["--protocol", "moco", "--epochs", 3, "--batch-size", 8]
    status, out, err = run_cli(*given, *options, "--lr", "0.1,1,30")
    assert status == 0, err
    assert "12 images, learned from 30; 3 classes, 64 raw features, 3 epochs, lr " in out
    status, again, _ = run_cli(*given, *options, "--lr", "0.1,1,30", "--json")
    results = []
    for name, text in (("one", again), ("two", run_cli(*given, *options, "--lr", "0.1,1,30", "--json")[1])):
        (tmp_path / f"{name}.json").write_text(text)
        results.append(tmp_path / f"{name}.json")
    assert json.loads(again)["results"][0]["top1"]["n"] == 12
    status, out, err = run_cli("compare", *results)
    assert status == 0, err
    for wrong, message in ((["--penalty", "1e-2"], "--penalty: not with --protocol"),
                           (["--folds", 3], "--folds: not with --protocol")):
        status, _, err = run_cli(*given, *options, *wrong)
        assert (status, message in err) == (2, True), err
    status, _, err = run_cli(*given[:3], "--epochs", 3)
    assert status == 2
    assert "--epochs: only with --protocol" in err
    status, _, err = run_cli("linear", *folders)
    assert status == 2
    assert "--protocol moco" in err
