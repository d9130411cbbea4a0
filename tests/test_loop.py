"""Whole pretrainings on little images: resuming exactly, saving on signals, refusing what cannot go on."""

import dataclasses
import json
import os
import pathlib
import signal
import warnings

import numpy as np
import pytest
import torch

from mocoembed import geometry
from mocoembed.config import PretrainConfig
from mocoembed.data.crop import crop
from mocoembed.data.decode import EncodedImage
from mocoembed.data.images import scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.data.views import ViewSettings, apply_views, colour_parameters, crop_box, draw
from mocoembed.errors import CollectionError, Interrupted, TrainingError, UsageError
from mocoembed.knn import knn_accuracy_of
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import load_encoder
from mocoembed.model.precision import Compute
from mocoembed.train import loop
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.loop import pretrain
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import limited


@pytest.fixture
def config(tmp_path, images):
    return PretrainConfig.of("small", str(images), workspace=str(tmp_path), width=0.125, stem="3x3s2", dim=16,
                             queue_size=20, batch_size=8, bn_groups=2, image_size=16, epochs=3, workers=0,
                             device="cpu", warmup_epochs=1.0)


def only_run(config):
    """The folder of the only run in the workspace."""
    (run,) = (pathlib.Path(config.workspace) / "runs").iterdir()
    return run


def metrics(result):
    return [json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()]


def stop_at(step):
    """A watcher that sends SIGTERM while step - 1 is reported, so that the run stops after `step`."""
    return Watcher(step=lambda report, steps: os.kill(os.getpid(), signal.SIGTERM) if report.step == step - 1 else None)


def flat(state):
    """Every tensor and number of a nested state, by its path."""
    found = {}

    def walk(value, path):
        if isinstance(value, dict):
            for name, one in value.items():
                walk(one, (*path, name))
        elif isinstance(value, list):
            for i, one in enumerate(value):
                walk(one, (*path, i))
        else:
            found[path] = value

    walk(state, ())
    return found


def require_equal(one, other):
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    for path, value in one.items():
        if path[0] in ("config", "sha256"):  # the workspace differs
            continue
        assert torch.equal(value, other[path]) if isinstance(value, torch.Tensor) else value == other[path], path


def test_trains_records_and_exports(config):
    result = pretrain(config)
    lines = metrics(result)
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert {"step", "epoch", "loss", "top1", "top5", "lr", "images_per_second", "waiting",
            "queue_filled"} <= set(lines[0])
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [line["queue_filled"] for line in lines][:4] == pytest.approx([8 / 20, 16 / 20, 1, 1])
    assert lines[0]["lr"] == pytest.approx(0.02)
    assert result.encoder.name == f"{result.fingerprint}.safetensors"
    assert (result.encoder.parent.parent / "encoder.safetensors").read_bytes() == result.encoder.read_bytes()
    assert json.loads((result.run / "config.json").read_text())["batch_size"] == 8
    assert list(result.run.glob("events.out.tfevents.*"))


def test_a_signal_during_a_step_stops_after_that_step(config, monkeypatch, capfd):
    step = loop.training_step

    def long_step(*given):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*given)

    monkeypatch.setattr(loop, "training_step", long_step)
    with pytest.raises(Interrupted, match="Stopped after step 1 of 9; saved in "):
        pretrain(config)
    assert capfd.readouterr().err.count("mocoembed: stopping after this step") == 1
    monkeypatch.undo()
    assert pretrain(config).steps == 9


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [2, 3, 7])
def test_resuming_is_exact_anywhere(config, tmp_path, stop, workers):
    config = dataclasses.replace(config, workers=workers)
    whole = pretrain(dataclasses.replace(config, workspace=str(tmp_path / "whole")))
    with pytest.raises(Interrupted, match=f"Stopped after step {stop} of 9; saved"):
        pretrain(config, stop_at(stop))
    notes = []
    resumed = pretrain(config, Watcher(note=notes.append))
    assert any(f"after step {stop} " in note for note in notes)
    require_equal(load_newest(whole.run), load_newest(resumed.run))
    assert whole.fingerprint == resumed.fingerprint
    columns = ("step", "epoch", "loss", "top1", "lr")
    assert [[line[name] for name in columns] for line in metrics(whole)] == [
        [line[name] for name in columns] for line in metrics(resumed)]


@pytest.mark.parametrize("changes", [{"dictionary": "end-to-end", "key_encoder": "shared-backbone"},
                                     {"key_image_size": 24, "key_crop_scale": (0.1, 0.5)}])
def test_keys_of_their_own_kind_resume_and_export(config, tmp_path, changes):
    config = dataclasses.replace(config, **changes)
    whole = pretrain(dataclasses.replace(config, workspace=str(tmp_path / "whole")))
    with pytest.raises(Interrupted):
        pretrain(config, stop_at(4))
    resumed = pretrain(config)
    require_equal(load_newest(whole.run), load_newest(resumed.run))
    assert whole.fingerprint == resumed.fingerprint
    frozen = load_encoder(resumed.encoder)
    assert frozen.transform.crop == 16  # the query's
    assert not any("head_k" in name for name in frozen.encoder.state_dict())


def test_a_run_that_died_between_checkpoints_does_the_lost_steps_again_alike(config, tmp_path):
    """As after kill -9: no handler gets to save anything."""
    config = dataclasses.replace(config, checkpoint_every=2)
    whole = pretrain(dataclasses.replace(config, workspace=str(tmp_path / "whole")))

    def die(report, steps):
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(config, Watcher(step=die))
    assert load_newest(only_run(config))["step"] == 4
    resumed = pretrain(config)
    require_equal(load_newest(whole.run), load_newest(resumed.run))
    columns = ("step", "epoch", "loss", "top1", "top5", "spread", "lr")
    assert [[line[name] for name in columns] for line in metrics(whole)] == [
        [line[name] for name in columns] for line in metrics(resumed)]


def test_lines_after_the_checkpoint_are_cut(config):
    with pytest.raises(Interrupted):
        pretrain(config, stop_at(4))
    with open(only_run(config) / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "loss": 99.0}\n{"step": 6, "lo')
    lines = metrics(pretrain(config))
    assert [line["step"] for line in lines] == list(range(1, 10))
    assert max(line["loss"] for line in lines) < 99


def test_the_same_command_again_trains_no_more(config):
    first = pretrain(config)
    again = pretrain(config)
    assert again.fingerprint == first.fingerprint
    assert again.last is None
    assert len(metrics(again)) == 9


def test_fresh_starts_over(config):
    first = pretrain(config)
    again = pretrain(dataclasses.replace(config, fresh=True))
    assert again.last is not None  # it did train
    assert len(metrics(again)) == 9
    assert again.fingerprint == first.fingerprint


def test_another_configuration_keeps_the_first_ones_results(config):
    first = pretrain(config)
    second = pretrain(dataclasses.replace(config, lr=0.01))
    assert first.run != second.run
    assert first.encoder.exists()
    assert second.encoder.exists()
    assert first.fingerprint != second.fingerprint


def test_a_named_run_refuses_other_settings_by_name_but_takes_more_epochs(config):
    named = dataclasses.replace(config, run="mine")
    pretrain(named)
    with pytest.raises(UsageError, match=r"--lr 0.06 -> 0.5"):
        pretrain(dataclasses.replace(named, lr=0.5))
    assert pretrain(dataclasses.replace(named, epochs=4)).steps == 12


def test_a_changed_collection_is_noticed(config, tmp_path, make_images):
    folder = make_images(tmp_path / "growing")
    config = dataclasses.replace(config, images=str(folder))
    with pytest.raises(Interrupted):
        pretrain(config, stop_at(2))
    (folder / "blue" / "000.png").rename(folder / "blue" / "new.png")
    with pytest.raises(UsageError, match="are not those that run"):
        pretrain(config)


def test_a_loss_that_is_not_finite_stops_with_advice_and_is_never_saved(config):
    config = dataclasses.replace(config, lr=1e30, warmup_epochs=0.0, checkpoint_every=1)
    with pytest.raises(TrainingError, match=r"lower --lr"):
        pretrain(config)
    state = load_newest(only_run(config))
    assert state is None or all(torch.isfinite(value).all() for value in state["model"].values())


def test_too_many_unreadable_images_stop_the_run(config, tmp_path, make_images):
    folder = make_images(tmp_path / "bad")
    for path in sorted((folder / "red").iterdir())[:6]:
        path.write_bytes(b"x")
    notes = []
    with pytest.raises(CollectionError, match=r"\d of 24 images so far cannot be read, more than 10%"):
        pretrain(dataclasses.replace(config, images=str(folder)), Watcher(note=notes.append))
    assert any("cannot identify" in note for note in notes), notes


def test_a_run_of_unreadable_images_stops_it_with_workers_too(config, tmp_path):
    (tmp_path / "bad").mkdir()
    for i in range(20):
        (tmp_path / "bad" / f"{i}.jpg").write_text("x")
    with pytest.raises(CollectionError, match=r"20 of 20 images so far cannot be read") as stopped:
        pretrain(dataclasses.replace(config, images=str(tmp_path / "bad"), workers=1))
    assert "Traceback" not in str(stopped.value)


def test_running_a_finished_run_again_keeps_the_provenance(config):
    first = pretrain(config)
    before = first.encoder.read_bytes()
    assert load_encoder(first.encoder).provenance["checkpoint_sha256"] == load_newest(first.run)["sha256"]
    assert pretrain(config).encoder.read_bytes() == before
    first.encoder.unlink()
    assert pretrain(config).encoder.read_bytes() == before


def two_views(listing, config, draws):
    """(48, 3, S, S): normalised views of 24 images, first those of view 0, made one by one."""
    settings, made = ViewSettings.of(config), []
    for drawn, row in zip(draws, 2 * list(range(24))):
        image = EncodedImage(listing.read(row)[0])
        box = crop_box(drawn, image.width, image.height, config.crop_scale)
        pixels = crop(image.rgb(1.0), box, config.image_size)
        made.append(apply_views(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None],
                                colour_parameters(drawn[None], settings), settings))
    return torch.cat(made)


def test_a_memory_bank_has_no_alignment(config, images):
    bank = dataclasses.replace(config, val=str(images), dictionary="memory-bank", bank_momentum=0.5, epochs=1,
                               queue_size=16)
    knn = pretrain(bank).knn
    assert (knn.alignment, knn.alignment_n) == (None, 0)
    assert "alignment" not in knn.summary()
    assert 1 <= knn.rankme <= 24


def test_the_knn_monitor_leaves_training_alone_and_its_accuracy_is_the_exported_encoders(config, images):
    result = pretrain(dataclasses.replace(config, val=str(images), val_every=2))
    lines = [line for line in metrics(result) if "knn_top1" in line]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert all(0 <= line["knn_top1"] <= 100 and line["images"] == 24 for line in lines)
    assert result.knn.knn_k == 23
    embedder = Embedder(load_encoder(result.encoder), Compute.of("cpu", "fp32"), "backbone", normalized=True)
    listing = scan(images)
    (batch,) = evaluation_batches(listing, embedder.frozen.transform, 24, 0)
    labels = torch.from_numpy(listing.labels).long()
    assert result.knn.knn_top1 == pytest.approx(knn_accuracy_of(embedder(batch.pixels), labels, 23, 0.1))
    vectors = embedder(batch.pixels)
    assert (result.knn.rankme_n, result.knn.alignment_n) == (24, 24)
    assert result.knn.rankme == pytest.approx(geometry.rankme(vectors), rel=1e-5)
    assert result.knn.uniformity == pytest.approx(geometry.uniformity(vectors), abs=1e-5)
    draws = [draw(config.seed, 0, row, view) for view in (0, 1) for row in range(24)]
    one, other = two_views(listing, config, draws).split(24)
    assert result.knn.alignment == pytest.approx(geometry.alignment(embedder(one), embedder(other)), rel=0.01)
    assert result.knn.summary().endswith(f"alignment {result.knn.alignment:.2f}")
    assert result.fingerprint == pretrain(dataclasses.replace(config, workspace=config.workspace + "/2")).fingerprint


def test_an_evaluation_that_was_due_when_the_run_stopped_is_made_up_for(config, images):
    config = dataclasses.replace(config, val=str(images), val_every=1)
    with pytest.raises(Interrupted):
        pretrain(config, stop_at(6))  # an epoch's end: saved, not evaluated
    result = pretrain(config)
    assert [line["step"] for line in metrics(result) if "knn_top1" in line] == [3, 6, 9]
    assert pretrain(config).knn is None  # all are there


def test_fewer_epochs_than_done_are_refused(config):
    pretrain(dataclasses.replace(config, run="mine"))
    with pytest.raises(UsageError, match="--epochs 2: run 'mine' has done 3"):
        pretrain(dataclasses.replace(config, run="mine", epochs=2))


def test_symmetric_bf16_and_last_batches_run(config):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = pretrain(dataclasses.replace(config, symmetric=True, precision="bf16", drop_last=False, limit=21,
                                              epochs=1))
    assert result.steps == 3
    assert metrics(result)[1]["queue_filled"] == 1.0


def test_a_validation_folder_of_one_label_is_refused_before_training(config, images):
    with pytest.raises(CollectionError, match=r"--val .* holds images of one label only \(red\)"):
        pretrain(dataclasses.replace(config, val=str(images / "red")))
    assert not (pathlib.Path(config.workspace) / "runs").exists()


@pytest.mark.parametrize("changes", [{"symmetric": True}, {"precision": "fp64"}, {"drop_last": False, "limit": 21}])
def test_resuming_is_exact_with_other_settings(config, tmp_path, changes):
    config = dataclasses.replace(config, **changes)
    whole = pretrain(dataclasses.replace(config, workspace=str(tmp_path / "whole")))
    with pytest.raises(Interrupted):
        pretrain(config, stop_at(4))
    require_equal(load_newest(whole.run), load_newest(pretrain(config).run))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_runs_on_a_gpu(config, precision):
    result = pretrain(dataclasses.replace(config, device="cuda", precision=precision, workers=2))
    assert len(metrics(result)) == 9


def test_limit_is_drawn_by_the_seed(config, images):
    listing = scan(images)
    one = limited(listing, dataclasses.replace(config, limit=9))
    other = limited(listing, dataclasses.replace(config, limit=9, seed=1))
    assert len(one) == 9
    assert len(set(one.labels.tolist())) == 3
    assert one.digest() != other.digest()
    assert limited(listing, config) is listing
