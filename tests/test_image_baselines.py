"""Baselines of folders of images: kept, shown in the progress, stopped, and honest where a fit did not converge."""

import dataclasses
import functools
import json
import os
import signal

import pytest

from mocoembed.config import FinetuneConfig, LinearConfig, ProbeConfig
from mocoembed.errors import Interrupted
from mocoembed.evaluate import baselines
from mocoembed.evaluate.images import baselines as module
from mocoembed.evaluate.images.finetune import finetune
from mocoembed.evaluate.images.probe import probe_accuracy
from mocoembed.evaluate.measures import Measured
from mocoembed.model.encoder_file import save_encoder

FITTED = ["raw pixels", "colour histogram", "HOG", "untrained encoder"]
GIVEN = {"labels": "4-per-class", "seeds": 2, "epochs": 1, "batch_size": 8, "workers": 0, "device": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_images, make_encoder):
    """TRAIN with 24 images, TEST with 12, an encoder."""
    root = tmp_path_factory.mktemp("folders")
    save_encoder(root / "encoder.safetensors", make_encoder())
    return (str(make_images(root / "train", 8, 1)), str(make_images(root / "test", 4, 2)),
            str(root / "encoder.safetensors"))


@pytest.fixture
def probed(folders, tmp_path):
    """`probed(note, progress, **options)`: the result of `linear --protocol moco`, in one workspace."""
    train, test, encoder = folders

    def measure(note=lambda text: None, progress=lambda done, total: None, **options):
        config = ProbeConfig("moco", train, test, **{**GIVEN, "lr": (0.1,), "encoder": encoder,
                                                     "workspace": str(tmp_path / "ws"), **options})
        return probe_accuracy(config, progress, note)

    return measure


def files_of(root):
    return sorted(path.name for path in (root / "ws" / "baselines").iterdir())


def test_what_was_measured_is_not_measured_again_by_either_command(probed, folders, tmp_path, monkeypatch):
    first = probed()
    fits = {name: one.fits for name, one in first.baselines.found.items()}
    assert list(fits) == ["majority class", *FITTED]
    assert fits.pop("majority class") is None
    assert all(ended.unconverged == 0 and ended.count == 2 * 8 for ended in fits.values())
    monkeypatch.setattr(module, "measure", pytest.fail)
    monkeypatch.setattr(module, "encoded", pytest.fail)
    notes = []
    again = probed(notes.append)
    assert again.baselines == first.baselines
    assert again.as_json()["baselines"] == first.as_json()["baselines"]
    assert sum(text.startswith("baselines kept from before: raw pixels, colour histogram, HOG, untrained encoder (")
               for text in notes) == 1
    tuned = finetune(FinetuneConfig(folders[0], folders[1], str(tmp_path / "ws"), folders[2], **GIVEN))
    assert tuned.baselines == first.baselines
    assert list(probed(baselines=False).baselines.found) == ["majority class"]


def test_they_are_of_these_images_labels_seeds_metric_and_encoder(probed, folders, tmp_path, make_images, make_encoder):
    probed()
    assert len(files_of(tmp_path)) == 1
    save_encoder(tmp_path / "other.safetensors", make_encoder(seed=5))
    others = [{"labels": "3-per-class"}, {"seeds": 1}, {"seed": 1}, {"metric": "balanced"},
              {"encoder": str(tmp_path / "other.safetensors")}, {"test": str(make_images(tmp_path / "new", 3, 9))}]
    for number, other in enumerate(others):
        train, test = folders[0], other.pop("test", folders[1])
        config = ProbeConfig("moco", train, test, **{**GIVEN, "lr": (0.1,), "encoder": folders[2],
                                                     "workspace": str(tmp_path / "ws"), **other})
        probe_accuracy(config)
        assert len(files_of(tmp_path)) == number + 2, other


def test_a_damaged_file_is_told_and_measured_again(probed, tmp_path):
    first = probed()
    (path,) = (tmp_path / "ws" / "baselines").iterdir()
    whole = path.read_text()
    for damaged in (whole.replace('"value": 1', '"value": 2', 1), whole[:-30], "[]"):
        assert damaged != whole
        path.write_text(damaged)
        notes = []
        assert probed(notes.append).baselines == first.baselines
        assert [text for text in notes if "The baselines are measured again." in text]
        assert path.read_text() == whole


def test_fresh_measures_them_again(probed, monkeypatch):
    first, seen, real = probed(), [], module.measure

    def measure(*arguments):
        seen.append(1)
        return real(*arguments)

    monkeypatch.setattr(module, "measure", measure)
    assert probed(fresh=True).baselines == first.baselines
    assert len(seen) == len(FITTED)


def test_stopped_in_them_they_go_on_with_the_next(probed, monkeypatch, tmp_path):
    expected, stopped = probed(workspace=str(tmp_path / "whole")), []

    def note(text):
        if text.startswith("baselines: HOG"):
            stopped.append(text)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match="Stopped in the baselines; what was measured is kept in"):
        probed(note)
    assert stopped
    notes = []
    assert probed(notes.append).baselines == expected.baselines
    measured = [text.split(",")[0] for text in notes if "logistic regression" in text]
    assert measured == ["baselines: HOG", "baselines: untrained encoder"]
    assert "baselines: reading 36 images at 32 pixels for HOG" in notes


@pytest.mark.parametrize("command", ["linear", "finetune"])
def test_the_progress_counts_them_and_a_line_says_what_is_computed(probed, folders, tmp_path, command):
    notes, told = [], []
    if command == "linear":
        run = functools.partial(probed, notes.append, lambda done, total: told.append((done, total)))
    else:
        config = FinetuneConfig(folders[0], folders[1], str(tmp_path / "ws"), folders[2], **GIVEN)
        run = functools.partial(finetune, config, lambda done, total: told.append((done, total)), notes.append)
    run()
    assert [text for text in notes if text.startswith("baselines")] == [
        "baselines: reading 36 images at 32 pixels for raw pixels, colour histogram, HOG",
        "baselines: raw pixels, logistic regression of 3072 features (1 of 4)",
        "baselines: colour histogram, logistic regression of 512 features (2 of 4)",
        "baselines: HOG, logistic regression of 324 features (3 of 4)",
        "baselines: encoding 36 images by the untrained encoder",
        "baselines: untrained encoder, logistic regression of 64 features (4 of 4)"]
    assert told == sorted(told)
    assert len({total for _, total in told}) == 1
    assert told[-1][0] == told[-1][1]
    with_all = told[-1][1]
    told.clear()
    run()
    assert with_all - told[-1][1] == 6 * 36  # two passes over the images, four times all fits
    assert told[-1][0] == told[-1][1]


def test_a_fit_that_did_not_converge_is_said_in_the_json_and_in_the_text(probed, folders, tmp_path, monkeypatch,
                                                                         run_cli):
    monkeypatch.setattr(module, "LinearConfig", functools.partial(LinearConfig, steps=1))
    result = probed(labels=None, seeds=1)
    told = {one["name"]: one.get("converged") for one in json.loads(json.dumps(result.as_json()))["baselines"]}
    assert told == {"majority class": None, **dict.fromkeys(FITTED, False)}
    assert result.baselines.found["HOG"].fits.unconverged > 0
    notes = [text for text in result.notes() if text.startswith("the baseline HOG: ")]
    assert len(notes) == 1
    assert "did not converge (gradient norm" in notes[0]
    given = [f"--{name.replace('_', '-')}={value}" for name, value in GIVEN.items() if name not in ("labels", "seeds")]
    status, out, said = run_cli("linear", *folders[:2], "--protocol", "moco", "--lr", "0.1", *given, "--encoder",
                                folders[2], "--workspace", tmp_path / "ws")  # as it was kept
    assert status == 0, said
    assert "HOG (not converged)" in out
    assert "the baseline HOG: " in said
    assert "kept from before" in said
    monkeypatch.undo()
    result = probed(labels=None, seeds=1, fresh=True)
    assert [one.get("converged") for one in result.as_json()["baselines"]] == [None, True, True, True, True]
    assert not any("did not converge" in text for text in result.notes())


def test_few_images_of_a_class_that_can_be_read_cost_the_baselines_alone(probed, tmp_path, monkeypatch):
    """What is said when logistic regression has too little to learn from; nothing is kept."""
    def fails(*arguments):
        raise module.CollectionError("too few")

    monkeypatch.setattr(module, "measure", fails)
    result = probed()
    assert list(result.baselines.found) == ["majority class"]
    assert "no baselines: too few" in result.notes()
    assert not (tmp_path / "ws" / "baselines").exists()


def test_many_images_are_read_only_when_asked(probed, monkeypatch):
    monkeypatch.setattr(baselines, "AUTOMATIC", 10)
    result = probed()
    assert list(result.baselines.found) == ["majority class"]
    assert "no baselines: 36 images would have to be read; give --baselines" in result.notes()
    monkeypatch.setattr(baselines, "CHEAP", 10)
    assert list(probed(baselines=True).baselines.found)[1:] == FITTED
    monkeypatch.setattr(baselines, "AUTOMATIC", 1000)
    result = probed(labels="2-per-class")
    assert list(result.baselines.found)[1:] == FITTED[:3]
    assert any("untrained encoder is left out" in text for text in result.notes())


def test_the_kept_file_holds_what_is_told_of_a_baseline(probed, tmp_path):
    result = probed()
    (path,) = (tmp_path / "ws" / "baselines").iterdir()
    content = json.loads(path.read_text())
    assert content["kind"] == "mocoembed baselines"
    assert content["baselines"]["HOG"]["fits"] == dataclasses.asdict(result.baselines.found["HOG"].fits)
    assert Measured.of(content["baselines"]["HOG"]["values"]["ap"]) == result.baselines.found["HOG"].values["ap"]
    assert content["of"]["labels"] == "4-per-class"
