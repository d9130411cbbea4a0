"""`mocoembed linear --protocol`: against a loop by hand, resumed, with a backbone that changes, and wrong input."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from torch import nn

from mocoembed.config import ProbeConfig
from mocoembed.data.augmentation import augmented
from mocoembed.errors import CollectionError, Interrupted, TrainingError, UsageError
from mocoembed.evaluate import probe as module
from mocoembed.evaluate.frozen_backbone import FrozenBackbone
from mocoembed.evaluate.labelled import labelled_images, training_batches
from mocoembed.evaluate.probe import probe_accuracy
from mocoembed.model.embedder import Embedder
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
                 "lr": (0.01, 0.1, 1.0), "protocol": "moco", "workspace": str(fresh_workspace), **options}
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
    model[1].load_state_dict(module.Heads(64, 3, ProbeConfig("moco", folder).published, (rate,), 0)
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
    how = module.augmentation(ProbeConfig("moco", folders[0], epochs=3, batch_size=8), frozen.transform)
    head, losses = by_hand(frozen, folders[0], how, 0.1)
    assert np.allclose(np.reshape(losses, (3, 4)).mean(axis=1), [one for one, in result.losses], atol=1e-5)
    shown = module.encoded(labelled_images(folders[1], "TEST"), frozen.transform,
                           Embedder(frozen, CPU, "backbone", normalized=False), 0).vectors
    with torch.no_grad():
        shares = head(shown).softmax(dim=1).numpy()
    assert np.allclose(result.shares, shares, atol=1e-4)
    right = shares.argmax(axis=1) == np.repeat([0, 1, 2], 4)
    assert result.values["top1"].value == pytest.approx(100 * right.mean())
    assert result.chosen.tried == []
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
    assert one.chosen.tried == other.chosen.tried
    assert one.losses == other.losses
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
    assert notes[0].startswith(f"going on after step {after} of 12")


def test_killed_it_goes_on_from_the_last_checkpoint(measured, fresh_workspace, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_CHECKPOINTS", -1.0)
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
    assert stamp["unchanged"] is True


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
    assert "1 of the queries have the same bytes" in result.notes()[0]


@pytest.mark.parametrize("protocol", ["dino", "lightly"])
def test_other_protocols(measured, protocol):
    told = []
    result = measured(lambda done, total: told.append((done, total)), protocol=protocol)
    assert facts(result)["protocol"]["name"] == f"linear, {protocol}"
    assert len(result.losses) == 3
    steps = 3 * (3 if protocol == "lightly" else 4)  # lightly leaves out what does not fill a batch
    assert len(told) == steps + 2
    assert told[-1][0] == told[-1][1]
    assert result.losses != measured().losses


def test_few_labels(measured):
    result = measured(labels="4-per-class")
    assert len(result.train.names) == 12
    with pytest.raises(CollectionError, match="Give more images, or one --lr, for example 30"):
        measured(labels="1-per-class")
    assert measured(labels="1-per-class", lr=(30.0,)).chosen.tried == []


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
