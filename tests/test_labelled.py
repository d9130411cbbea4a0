"""Labelled images: what is found, how it is split, and that batches depend on seed and step alone."""

import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from mocoembed.data.augmentation import Augmentation, augmented
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.views import crop_box, draw
from mocoembed.errors import CollectionError, UsageError
from mocoembed.evaluate.images import labelled as room

TRANSFORM = EvaluationTransform(32, 32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def how(**more):
    return Augmentation.of(TRANSFORM, **{"seed": 3, "batch_size": 10, "epochs": 2, **more})


def all_batches(images, step=0, workers=0, **more):
    return list(room.training_batches(images, how(**more), step, workers, False))


@pytest.fixture(scope="module")
def found(images):
    return room.labelled_images(str(images), "TRAIN")


def test_labels_and_digests_are_those_of_the_files(found, images):
    assert found.names == ["blue"] * 8 + ["green"] * 8 + ["red"] * 8
    assert found.classes([0, 23, 8], ["blue", "green", "red"]).tolist() == [0, 2, 1]
    again = room.labelled_images(str(images), "TRAIN")
    assert again.identity == found.identity != found.only(np.arange(24) > 0).identity


def test_copies_stay_together_in_a_split(tmp_path, images):
    folder = shutil.copytree(images, tmp_path / "copies")
    for path in sorted((folder / "red").iterdir())[:4]:
        shutil.copy(path, path.with_name("copy-" + path.name))
    found = room.labelled_images(str(folder), "TRAIN")
    for seed in range(5):
        learned, apart = room.split(found, 0.3, seed)
        assert len(learned) + len(apart) == len(found) == 28
        assert not set(learned.digests.tolist()) & set(apart.digests.tolist())
        assert set(apart.names) == {"blue", "green", "red"}


def test_every_image_is_seen_once_in_an_epoch(found):
    batches = all_batches(found)
    assert [len(batch.rows) for batch in batches] == [10, 10, 4] * 2
    for epoch in range(2):
        rows = torch.cat([batch.rows for batch in batches if batch.epoch == epoch])
        assert sorted(rows.tolist()) == list(range(24))
    assert not torch.equal(batches[0].rows, batches[3].rows)


def test_batches_depend_on_step_and_seed_alone(found):
    batches = all_batches(found)
    for other in (all_batches(found, step=2), all_batches(found, step=2, workers=2)):
        for one, two in zip(batches[2:], other, strict=True):
            assert torch.equal(one.rows, two.rows)
            assert torch.equal(one.crops[0], two.crops[0])
            assert torch.equal(augmented(one, how(), torch.device("cpu")), augmented(two, how(), torch.device("cpu")))
    assert not torch.equal(batches[0].rows, all_batches(found, seed=4)[0].rows)


def test_a_view_is_the_drawn_crop_resized_flipped_and_normalised(found):
    from torchvision.io import ImageReadMode, read_image

    batch = all_batches(found)[0]
    views = augmented(batch, how(), torch.device("cpu"))
    flipped = 0
    for row, view in zip(batch.rows.tolist(), views):
        if not (path := found.listing.full_path(row)).endswith(b".png"):
            continue
        whole = read_image(path.decode(), ImageReadMode.RGB)
        drawn = draw(3, 0, row, 0)
        left, top, right, bottom = crop_box(drawn, whole.shape[2], whole.shape[1], (0.08, 1.0))
        expected = functional.interpolate(whole[None, :, top:bottom, left:right].float(), (32, 32), mode="bilinear",
                                          antialias=True)[0] / 255
        if drawn[22] < 0.5:
            expected, flipped = expected.flip(-1), flipped + 1
        expected = (expected - torch.tensor(TRANSFORM.mean).view(3, 1, 1)) / torch.tensor(TRANSFORM.std).view(3, 1, 1)
        assert (expected - view).abs().max() < 1.01 / 255 / 0.2
    assert flipped > 0


def test_few_labels(found):
    few = room.with_few_labels(found, "2-per-class", 0)
    assert few.names == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    assert room.with_few_labels(found, None, 0) is found
    with pytest.raises(CollectionError, match="has 8 different images"):
        room.with_few_labels(found, "9-per-class", 0)


def test_an_unreadable_image_is_left_out_of_a_test_and_replaced_in_training(tmp_path, images):
    folder = shutil.copytree(images, tmp_path / "broken")
    (folder / "blue" / "003.jpg").write_bytes(b"no image")
    found = room.labelled_images(str(folder), "TRAIN")
    result = room.encoded(found, TRANSFORM, lambda pixels: pixels.float().mean(dim=(2, 3)), 0)
    assert np.flatnonzero(~result.readable).tolist() == [3]
    assert not result.vectors[3].any()
    assert "003.jpg" in result.notes(found)[0]
    expected = room.encoded(room.labelled_images(str(images), "T"), TRANSFORM, lambda x: x.float().mean(dim=(2, 3)), 0)
    assert torch.equal(result.vectors[4:], expected.vectors[4:])
    batches = all_batches(found)
    assert all(3 not in batch.rows.tolist() for batch in batches)
    assert [failure.row for batch in batches for failure in batch.failures] == [3, 3]


def test_what_cannot_be_learned_is_refused(found, tmp_path, images):
    with pytest.raises(CollectionError, match=r"one class, 'red'; linear classification needs two or more"):
        room.require_comparable(found.only(np.arange(24) >= 16), None, "linear classification")
    shutil.copytree(images / "red", tmp_path / "test" / "rose")
    test = room.labelled_images(str(tmp_path / "test"), "TEST")
    with pytest.raises(CollectionError, match=r"has the class 'rose', of which .* has no image"):
        room.require_comparable(found, test, "linear classification")
    with pytest.raises(UsageError, match="does not exist"):
        room.labelled_images(str(tmp_path / "nowhere"), "TRAIN")
    (tmp_path / "list.txt").write_text("\n".join(str(path) for path in (images / "red").iterdir()))
    assert set(room.labelled_images(str(tmp_path / "list.txt"), "TRAIN").names) == {"red"}


def test_without_any_label_it_is_refused(tmp_path, images):
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(f"{path}," for path in (images / "red").iterdir()))
    with pytest.raises(CollectionError, match=r"none of its 8 images has a label"):
        room.labelled_images(str(tmp_path / "list.csv"), "TRAIN")
