"""Checkpoints: committed by the manifest, checked when loaded, never half."""

import json

import pytest
import torch

from mocoembed.errors import FormatError
from mocoembed.train.checkpoint import (
    KEPT,
    MANIFEST,
    current_checkpoint,
    delete_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)


def state(step):
    return {"step": step, "epoch": step // 2, "config": {"epochs": 3}, "moco": {"w": torch.full((4,), float(step))}}


def test_the_newest_comes_back_and_the_last_few_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        entry = save_checkpoint(tmp_path, state(step))
    assert entry["file"] == "checkpoint-4.pt"
    assert current_checkpoint(tmp_path) == tmp_path / "checkpoint-4.pt"
    assert torch.equal(load_newest(tmp_path)["moco"]["w"], torch.full((4,), 4.0))
    assert len(list(tmp_path.glob("*.pt"))) == KEPT == 2


def test_a_file_that_the_manifest_does_not_name_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "checkpoint-9.pt").write_bytes(b"half")
    assert load_newest(tmp_path)["step"] == 1
    assert load_newest(tmp_path / "elsewhere") is None


def test_a_damaged_one_falls_back_aloud_to_the_one_before(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "checkpoint-2.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=r"checkpoint-2.pt is damaged.*Falling back"):
        assert load_newest(tmp_path)["step"] == 1
    (tmp_path / "checkpoint-1.pt").unlink()
    with pytest.warns(UserWarning, match="Falling"), pytest.raises(FormatError, match=r"No checkpoint .* can be read"):
        load_newest(tmp_path)


def test_a_pickle_from_a_stranger_is_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "opened"), "w")

    torch.save({"step": Trap()}, tmp_path / "checkpoint-1.pt")
    with pytest.raises(FormatError, match="not a checkpoint of mocoembed"):
        load_checkpoint(tmp_path / "checkpoint-1.pt")
    assert not (tmp_path / "opened").exists()


def test_newer_formats_and_foreign_files_are_refused(tmp_path):
    torch.save({**state(1), "format": 99}, tmp_path / "a.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "b.pt")
    for name, message in [("a.pt", "format 99; this version reads up to 1"), ("b.pt", "not a checkpoint")]:
        with pytest.raises(FormatError, match=message):
            load_checkpoint(tmp_path / name)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(FormatError, match="format 99"):
        load_newest(tmp_path)


def test_deleting_forgets_all(tmp_path):
    save_checkpoint(tmp_path, state(1))
    delete_checkpoints(tmp_path)
    assert load_newest(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
