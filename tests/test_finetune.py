"""Fine-tuning: what a step does, resuming to the bit, the result, the classifier, wrong input."""

import csv
import dataclasses
import functools
import io
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from killing import Run as Killed
from PIL import Image
from torch.nn import functional

from mocoembed.cli import finetune as output
from mocoembed.config import CompareConfig, FinetuneConfig
from mocoembed.data.augmentation import Augmentation, augmented
from mocoembed.errors import CollectionError, FormatError, Interrupted, TrainingError, UsageError
from mocoembed.evaluate.compare import compare_results
from mocoembed.evaluate.images import baselines as image_baselines
from mocoembed.evaluate.images import finetune as module
from mocoembed.evaluate.images import finetuning, kept_baselines
from mocoembed.evaluate.images.finetune import finetune
from mocoembed.evaluate.images.finetuning import FineTuning, epochs_of, share_of_rate
from mocoembed.evaluate.images.labelled import labelled_images, training_batches
from mocoembed.evaluate.untrained import random_encoder
from mocoembed.model.classifier_file import load_classifier
from mocoembed.model.encoder_file import save_encoder
from mocoembed.model.stages import Tuned
from mocoembed.train import checkpoint
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

STEPS = {"epochs": 3, "batch_size": 5, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, make_encoder):
    path = tmp_path_factory.mktemp("encoder") / "encoder.safetensors"
    save_encoder(path, make_encoder())
    return path


@pytest.fixture(scope="module")
def other_images(tmp_path_factory, make_images):
    return make_images(tmp_path_factory.mktemp("test"), per_class=4, seed=7)


def test_baselines_are_learned_from_the_same_images(tmp_path, encoder, images, other_images):
    """Of three plain colours, the histogram tells all apart, and the classifier of few steps does not."""
    config = config_of(tmp_path, encoder, images, other_images, baselines=None, seeds=1, labels="3-per-class", epochs=1,
                       lr=1e-4, backbone_lr=0.0)
    result = finetune(config)
    found = result.baselines.found
    assert list(found) == ["majority class", "raw pixels", "colour histogram", "HOG", "untrained encoder"]
    assert found["colour histogram"].values["top1"].value == 100
    assert any(note.startswith("the fine-tuned classifier (") and "no better than these baselines" in note
               for note in result.notes())
    assert list(finetune(dataclasses.replace(config, baselines=False)).baselines.found) == ["majority class"]


@pytest.fixture(scope="module")
def done(tmp_path_factory, encoder, images, other_images):
    """A finished run: its workspace and its result."""
    root = tmp_path_factory.mktemp("done") / "ws"
    return root, finetune(config_of(root, encoder, images, other_images))


def config_of(root, encoder, train, test=None, **more):
    return FinetuneConfig(str(train), str(test) if test else None, str(root), str(encoder),
                          **{"labels": "4-per-class", "seeds": 2, "baselines": False, **STEPS, **more})


def test_a_step_is_sgd_on_the_cross_entropy_of_augmented_images(make_encoder, images):
    """Against the formula written out: two rates, momentum, a cosine, BatchNorm in training mode."""
    frozen, found = make_encoder(), labelled_images(str(images), "TRAIN")
    config = FinetuneConfig(str(images), weight_decay=0.01, **STEPS)
    tuning = FineTuning(config, frozen, found, ["blue", "green", "red"], 3)
    how = Augmentation.of(frozen.transform, seed=3, batch_size=5, epochs=3)
    torch.manual_seed(3)
    mine = Tuned(make_encoder().encoder.backbone, 3, 0).train()
    assert all(torch.equal(one, other) for one, other in zip(mine.parameters(), tuning.network.parameters()))
    velocity = {name: torch.zeros_like(one) for name, one in mine.named_parameters()}
    for step, batch in zip(range(4), training_batches(found, how, 0, 0, False)):
        tuning._one_step(batch, pytest.fail)
        y = torch.tensor([["blue", "green", "red"].index(found.names[row]) for row in batch.rows.tolist()])
        mine.zero_grad()
        loss = functional.cross_entropy(mine(augmented(batch, how, torch.device("cpu"))), y)
        loss.backward()
        factor = 5 / 256 * 0.5 * (1 + np.cos(np.pi * step / 15))
        with torch.no_grad():
            for name, one in mine.named_parameters():
                gradient = one.grad + 0.01 * one
                velocity[name] = gradient if step == 0 else 0.9 * velocity[name] + gradient
                one -= factor * (0.2 if name.startswith("classifier") else 0.01) * velocity[name]
        assert tuning.loss == pytest.approx(loss.item(), rel=1e-4)
    for (name, one), other in zip(mine.state_dict().items(), tuning.network.state_dict().values()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6, msg=name)


def test_from_scratch_all_learns_at_one_rate_from_other_weights(make_encoder, images):
    frozen, found = make_encoder(), labelled_images(str(images), "TRAIN")
    def untrained(seed):
        return random_encoder(frozen.encoder.spec, frozen.transform, seed)

    start = untrained(5)
    assert start.encoder.spec == frozen.encoder.spec
    assert start.fingerprint() != frozen.fingerprint() != untrained(6).fingerprint()
    assert start.fingerprint() == untrained(5).fingerprint()
    tuning = FineTuning(FinetuneConfig(str(images), from_scratch=True, **STEPS), start, found, ["a", "b", "c"], 5)
    assert {group["base"] for group in tuning.optimizer.param_groups} == {0.2 * 5 / 256}


def test_the_schedule_and_the_number_of_epochs():
    assert [round(share_of_rate(step, 4), 4) for step in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    assert epochs_of(FinetuneConfig("x"), 64) == 25  # 2 steps each
    assert epochs_of(FinetuneConfig("x"), 640) == 20
    assert epochs_of(FinetuneConfig("x"), 10) == 50
    assert epochs_of(FinetuneConfig("x", epochs=3), 10) == 3


def test_the_result_is_in_the_schema_and_counts_what_the_classifiers_say(done, other_images):
    root, result = done
    made = result.as_json()
    assert (made["kind"], made["schema"], made["task"]) == ("mocoembed evaluation", 1, "finetune")
    assert [one["seed"] for one in made["repeats"]] == [0, 1]
    assert [one["train"] for one in made["repeats"]] == [12, 12]
    assert made["data"]["bank"]["count"] == 24
    assert made["data"]["queries"]["count"] == 12
    assert made["baselines"][0]["name"] == "majority class"
    assert made["results"][0]["top1"]["method"] == "Student's t over repeats"
    test, says = labelled_images(str(other_images), "TEST"), []
    for seed, repeat in zip((0, 1), made["repeats"]):
        one = load_classifier(result.run / f"seed-{seed}.safetensors")
        pixels = torch.stack([torch.from_numpy(one.frozen.transform.pixels(image_of(test, row)).copy())
                              for row in range(12)]).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (one.frozen.transform.mean,
                                                                        one.frozen.transform.std))
        with torch.inference_mode():
            said = one.logits(one.frozen.encoder.backbone((pixels - mean) / std)).argmax(dim=1)
        right = np.array([one.labels[place] == name for place, name in zip(said.tolist(), test.names)])
        assert repeat["top1"] == pytest.approx(100 * right.mean())
        says.append(right)
        if seed == 0:
            assert np.trace(made["confusion"]["counts"]) == right.sum()
    assert made["outcomes"]["top1"] == pytest.approx(np.mean(says, axis=0))
    assert made["classifier"]["start"] == "encoder"
    assert "shorter-side to 32 (bilinear), centre crop 32" in made["protocol"]["settings"]["preprocessing"]
    mean = np.mean([one["top1"] for one in made["repeats"]])
    assert 100 * np.mean(made["outcomes"]["top1"]) == pytest.approx(mean)
    assert made["results"][0]["top1"]["value"] == pytest.approx(mean)
    assert Workspace(root).newest_classifier.read_bytes() == (result.run / "seed-0.safetensors").read_bytes()


def test_copies_of_training_images_among_the_test_images_are_counted(tmp_path, encoder, make_images, other_images):
    train, test = make_images(tmp_path / "train", per_class=20), shutil.copytree(other_images, tmp_path / "test")
    first, second = sorted(train.rglob("*.jpg"))[:2]
    shutil.copy(first, test / first.parent.name / "the-same.jpg")
    Image.open(second).save(test / second.parent.name / "nearly-the-same.png")
    result = finetune(config_of(tmp_path / "all", encoder, train, test, epochs=1, labels=None, seeds=1))
    assert result.overlap.identical == 1
    assert result.overlap.near >= 2
    assert 0.9 < result.overlap.threshold <= 1
    assert "1 of the test images have the same bytes as a training image" in " ".join(result.notes())
    few = finetune(config_of(tmp_path / "few", encoder, train, test, epochs=1, seeds=1))
    assert few.overlap.identical == 0  # not among the few that were learned from
    assert few.overlap.near is None  # too few to see how alike they are


def image_of(images, row):
    from mocoembed.data.decode import EncodedImage

    return EncodedImage(images.listing.read(row)[0])


def test_it_learns(tmp_path, encoder, images, other_images):
    """Red, green and blue are told apart after some steps."""
    result = finetune(config_of(tmp_path, encoder, images, other_images, labels=None, seeds=1, epochs=12, lr=1.0,
                                backbone_lr=0.2))
    assert result.values["top1"].value > 80


def bytes_of(run):
    return {path.name: path.read_bytes() for path in sorted(run.glob("seed-*"))}


@pytest.mark.parametrize("at", [1, 7, 9, 13])
def test_stopped_anywhere_it_goes_on_to_the_same_result(done, tmp_path, encoder, images, other_images, at, monkeypatch):
    """Nine steps for each seed: within the first, after it, within the second. A signal, then a death."""
    config = config_of(tmp_path, encoder, images, other_images, checkpoint_every=2)
    step, taken = FineTuning._one_step, []

    def interrupted(self, *arguments):
        step(self, *arguments)
        taken.append(1)
        if len(taken) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(taken) == at + 2:
            raise SystemError("dies")

    monkeypatch.setattr(FineTuning, "_one_step", interrupted)
    with pytest.raises(Interrupted, match="Run the same command again"):
        finetune(config)
    with pytest.raises(FormatError, match="a checkpoint of mocoembed finetune, not of a pretraining"):
        open_encoder(str(next((tmp_path / "finetune").iterdir())), Workspace(tmp_path))
    with pytest.raises(SystemError):
        finetune(config)
    monkeypatch.undo()
    said = []
    result = finetune(config, note=said.append)
    assert bytes_of(result.run) == bytes_of(done[1].run)
    assert result.values == done[1].values
    assert not list(result.run.glob("checkpoint*"))
    assert any("resuming" in text for text in said)


def killed_after(real, count, *arguments, **options):
    """Call `real`, and end the process when it is the `count`-th time."""
    found = real(*arguments, **options)
    killed_after.calls += 1
    if killed_after.calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return found


killed_after.calls = 0


def nothing(*arguments):
    """In place of the call that the kill comes before."""


def half_written(count, state, file):
    """`torch.save`, ended half way through the `count`-th file."""
    buffer = io.BytesIO()
    torch.serialization.save(state, buffer)
    if killed_after.calls + 1 == count:
        buffer.truncate(buffer.tell() // 2)
    file.write(buffer.getvalue())
    file.flush()


def die_at(place, count):
    """In the process that is to be killed: when `place` has been called `count` times."""
    holder, name = PLACES[place]
    real = getattr(holder, name)
    if place == "half a checkpoint":
        real = functools.partial(half_written, count)
    if place == "before the manifest":
        real = nothing
    setattr(holder, name, functools.partialmethod(dies, real, count) if isinstance(holder, type)
            else functools.partial(killed_after, real, count))


def dies(self, real, count, *arguments):
    """`killed_after` of a method."""
    return killed_after(real, count, self, *arguments)


PLACES = {"step": (FineTuning, "_one_step"), "half a checkpoint": (torch, "save"),
          "before the manifest": (checkpoint, "write_json"), "checkpoint": (finetuning, "save_checkpoint"),
          "classifier": (module, "save_classifier"), "shown": (module, "encoded"), "exported": (module.Run, "export"),
          "baseline": (image_baselines, "measure"), "kept baseline": (kept_baselines, "write_json"),
          "result": (output, "put_result")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, encoder, images, other_images):
    """The command line, the same for all, and what it gives when nothing comes between: JSON and files of a run."""
    root = tmp_path_factory.mktemp("undisturbed")
    arguments = ["finetune", images, other_images, "--encoder", encoder, "--labels", "4-per-class", "--seeds", 2,
                 "--epochs", 3, "--batch-size", 5, "--workers", 0, "--device", "cpu", "--checkpoint-every", 2,
                 "--json"]
    run = Killed(root / "run", *arguments, "--workspace", root / "ws").go()
    assert run.wait() == 0, run.stderr
    return arguments, what_is_left(run, root / "ws")


def what_is_left(run, workspace):
    """The JSON but for the time and the paths, and all files of the workspace but its own record of the settings."""
    found = json.loads((run.folder / "stdout").read_text())
    del found["seconds"], found["command"], found["classifier"]["path"]
    files = {str(path.relative_to(workspace)): path.read_bytes() for path in sorted(workspace.rglob("*"))
             if path.is_file() and path.name not in ("config.json", ".lock")}
    return found, files


# Nine steps for each seed, checkpoints after 2, 4, 6 and 8. Each moment: which call ends the process, and how often it
# returns before.
@pytest.mark.parametrize("moment", [
    ("step", 1), ("half a checkpoint", 1), ("before the manifest", 1), ("checkpoint", 1), ("step", 5),
    ("half a checkpoint", 3), ("classifier", 1), ("step", 12), ("checkpoint", 8), ("classifier", 2), ("shown", 1),
    ("shown", 2), ("exported", 1), ("baseline", 1), ("kept baseline", 2), ("baseline", 4), ("kept baseline", 4),
    ("result", 1)], ids=lambda moment: f"{moment[0]} {moment[1]}")
def test_killed_at_any_moment_the_same_command_ends_the_same(undisturbed, tmp_path, moment):
    """To the bit: the JSON, the classifiers, the graph; and nothing half-written is left beside them."""
    arguments, expected = undisturbed
    workspace = tmp_path / "ws"
    killed = Killed(tmp_path / "killed", *arguments, "--workspace", workspace,
                    prepare=functools.partial(die_at, *moment)).go()
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    again = Killed(tmp_path / "again", *arguments, "--workspace", workspace).go()
    assert again.wait() == 0, again.stderr
    found, files = what_is_left(again, workspace)
    assert found == expected[0]
    assert sorted(files) == sorted(expected[1])
    assert [name for name in files if files[name] != expected[1][name]] == []


def test_a_finished_run_is_told_again_without_a_step(done, encoder, images, other_images, monkeypatch):
    root, result = done
    monkeypatch.setattr(FineTuning, "_one_step", pytest.fail)
    said = []
    assert finetune(config_of(root, encoder, images, other_images), note=said.append).values == result.values
    assert [text[:26] for text in said[:2]] == ["seed 0 was learned before ", "seed 1 was learned before "]


def test_damaged_classifiers_of_a_run_are_made_again(done, tmp_path, encoder, images, other_images):
    root = tmp_path / "ws"
    shutil.copytree(done[0], root)
    (path,) = (root / "finetune").glob("*/seed-1.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = []
    finetune(config_of(root, encoder, images, other_images), note=said.append)
    assert path.read_bytes() == whole
    assert any("It is made again" in text for text in said)


def test_without_test_a_stratified_fifth_is_not_learned_from(tmp_path, encoder, images):
    result = finetune(config_of(tmp_path, encoder, images, labels=None, seeds=None))
    assert len(result.train.names) == 18
    assert sorted(set(result.test.names)) == ["blue", "green", "red"]
    assert not set(result.train.digests.tolist()) & set(result.test.digests.tolist())
    assert len(result.repeats) == 1
    assert result.values["top1"].method.startswith("percentile bootstrap")


def test_other_labels_of_the_test_images_change_nothing_that_is_learned(done, tmp_path, encoder, images, other_images):
    rows = [["path", "label"]] + [[str(path), "red"] for path in sorted(other_images.rglob("*.*"))]
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = finetune(config_of(tmp_path / "ws", encoder, images, tmp_path / "list.csv"))
    assert bytes_of(result.run) == bytes_of(done[1].run)
    assert set(result.test.names) == {"red"}


def test_results_are_compared_and_protocols_told_apart(done, tmp_path, encoder, images, other_images):
    paths = []
    for name, more in (("a", {}), ("b", {"seed": 0, "epochs": 3, "lr": 0.2}), ("c", {"from_scratch": True})):
        result = done[1] if not more else finetune(config_of(tmp_path / name, encoder, images, other_images, **more))
        paths.append(str(tmp_path / f"{name}.json"))
        (tmp_path / f"{name}.json").write_text(json.dumps(result.as_json()))
    same = compare_results(CompareConfig((paths[0], paths[1])))
    assert same.differences[0].value.value == 0
    scratch = Workspace(tmp_path / "c")
    assert result.path.parent == scratch.newest_classifier.parent / "classifiers"
    assert result.path.with_suffix(".onnx").is_file()
    assert not scratch.newest_classifier.exists()  # it is there for comparison
    with pytest.raises(Exception, match="from_scratch is false"):
        compare_results(CompareConfig((paths[0], paths[2])))
    assert compare_results(CompareConfig((paths[0], paths[2]), anyway=True)).differs


def test_the_command_line_and_the_classifier_that_it_leaves(run_cli, tmp_path, encoder, images, other_images):
    status, out, said = run_cli("finetune", images, other_images, "--encoder", encoder, "--workspace", tmp_path,
                                "--epochs", 2, "--batch-size", 8, "--workers", 0, "--freeze-stages", 2, "--device",
                                "cpu")
    assert status == 0, said
    assert "fine-tuned" in out
    assert "classifier: " in said
    status, out, said = run_cli("classify", other_images, "--workspace", tmp_path, "--format", "json", "--device",
                                "cpu")
    assert status == 0, said
    assert said == ""
    assert len(json.loads(out)) == 12
    frozen = load_classifier(Workspace(tmp_path).newest_classifier).frozen.encoder.backbone
    start = open_encoder(str(encoder), Workspace(tmp_path)).encoder.backbone
    assert torch.equal(frozen.conv1.weight, start.conv1.weight)
    assert not torch.equal(frozen.layer4[0].conv1.weight, start.layer4[0].conv1.weight)
    assert run_cli("info", Workspace(tmp_path).newest_classifier, "--verify")[0] == 0


def test_unreadable_images_are_replaced_and_left_out(tmp_path, encoder, images, other_images):
    train, test = (shutil.copytree(one, tmp_path / name) for one, name in ((images, "train"), (other_images, "test")))
    (train / "blue" / "003.jpg").write_bytes(b"junk")
    (test / "red" / "001.jpg").write_bytes(b"junk")
    said = []
    result = finetune(config_of(tmp_path / "ws", encoder, train, test, labels=None, seeds=1), note=said.append)
    assert len(result.test.names) == 11
    assert any("replaced by the next image" in text and "003.jpg" in text for text in said)
    assert any("left out" in text and "001.jpg" in text for text in said)
    for path in sorted(train.rglob("*.png"))[:6]:
        path.write_bytes(b"junk")
    with pytest.raises(CollectionError, match="more than 10%"):
        finetune(config_of(tmp_path / "ws", encoder, train, test, labels=None, seeds=1))


def test_a_loss_that_is_not_finite_ends_it_before_a_checkpoint(tmp_path, encoder, images, other_images):
    config = config_of(tmp_path, encoder, images, other_images, lr=1e4, backbone_lr=1e4, checkpoint_every=1, epochs=30)
    with pytest.raises(TrainingError, match=r"not finite|The loss is"):
        finetune(config)
    assert not list((tmp_path / "finetune").glob("*/seed-*"))
    assert not Workspace(tmp_path).newest_classifier.exists()


def test_a_name_is_of_one_run(done, tmp_path, encoder, images, other_images):
    config = config_of(tmp_path, encoder, images, other_images, run="mine", seeds=1, epochs=1)
    finetune(config)
    with pytest.raises(UsageError, match="'mine' was started with other settings"):
        finetune(dataclasses.replace(config, lr=0.1))
    finetune(dataclasses.replace(config, lr=0.1, fresh=True))


def wrong_inputs(tmp_path, images, encoder):
    one_class, unlabelled = tmp_path / "one", tmp_path / "list.csv"
    shutil.copytree(images / "red", one_class / "red")
    unlabelled.write_text("path,label\n" + "".join(f"{path},\n" for path in sorted((images / "red").iterdir())))
    foreign = tmp_path / "foreign"
    shutil.copytree(images / "red", foreign / "rose")
    embeddings = tmp_path / "x.h5"
    embeddings.touch()
    return {
        "one class": ([one_class], "one class, 'red'"),
        "unlabelled": ([unlabelled], "none of its 8 images has a label"),
        "a class of TEST alone": ([images, foreign], "has the class 'rose'"),
        "embeddings": ([embeddings], "holds no images"), "missing": ([tmp_path / "none"], "does not exist"),
        "too many labels": ([images, "--labels", "30-per-class"], "Give --labels"),
        "no share": ([images, "--labels", "0%"], "must be a share"),
        "too many stages": ([images, "--freeze-stages", 6], "resnet18 has 5 stages. Give 0 to 5"),
        "frozen scratch": ([images, "--freeze-stages", 1, "--from-scratch"], "not with --from-scratch"),
        "no device": ([images, "--device", "gpu"], "--device gpu: must be auto, cpu, cuda or cuda:N"),
        "no GPU": ([images, "--device", "cuda:7"], "--device cuda:7: not on this machine"),
        "no encoder": ([images, "--encoder", tmp_path / "none"], "does not exist")}


@pytest.mark.parametrize("wrong", ["one class", "unlabelled", "a class of TEST alone", "embeddings", "missing",
                                   "no device", "no GPU", "too many labels", "no share", "too many stages",
                                   "frozen scratch", "no encoder"])
def test_wrong_input_is_a_clear_line_and_nothing_is_written(run_cli, tmp_path, encoder, images, wrong):
    arguments, message = wrong_inputs(tmp_path, images, encoder)[wrong]
    encoders = [] if "--encoder" in arguments else ["--encoder", encoder]
    status, out, said = run_cli("finetune", *arguments, *encoders, "--workspace", tmp_path / "ws",
                                *([] if "--device" in arguments else ["--device", "cpu"]))
    assert status in (1, 2)
    assert out == ""
    assert message in said
    assert said.splitlines()[-1].startswith("mocoembed: ") or said.count("\n") <= 3
    assert not (tmp_path / "ws").exists()
