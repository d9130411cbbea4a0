"""Batches: the same for any number of workers, resumable anywhere, whole beside unreadable files."""

import numpy as np
import pytest
import torch
from PIL import Image

from mocoembed.config import PretrainConfig
from mocoembed.data.digests import DigestTable
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import scan
from mocoembed.data.loader import (
    EvaluationImages,
    Place,
    Places,
    TwoViews,
    evaluation_batches,
    steps_per_epoch,
    view_batches,
    worker_count,
)

TRANSFORM = EvaluationTransform(32, 32, (0.5,) * 3, (0.5,) * 3)


def config(**overrides):
    return PretrainConfig.of("small", "images", **{"batch_size": 8, "bn_groups": 2, "image_size": 32, "epochs": 2,
                                                     "workers": 0, **overrides})


def batches_of(listing, rank=0, size=1, workers=0, **overrides):
    """All batches of a rank."""
    settings = config(**overrides)
    return list(view_batches(listing, settings, Places(len(listing), settings, 0, rank, size), workers, pin=False))


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


def test_every_image_comes_once_an_epoch_in_another_order():
    places = list(Places(24, config(), 0))
    assert [place.step for place in places] == list(range(6))
    epochs = [np.concatenate([place.rows for place in places if place.epoch == epoch]) for epoch in range(2)]
    assert [sorted(rows) for rows in epochs] == [list(range(24))] * 2
    assert not np.array_equal(*epochs)


def test_a_resumed_run_sees_the_same_batches():
    whole = list(Places(21, config(drop_last=False), 0))
    assert [len(place.rows) for place in whole] == [8, 8, 5] * 2
    for start in range(7):
        rest = list(Places(21, config(drop_last=False), start))
        assert len(Places(21, config(drop_last=False), start)) == len(rest) == 6 - start
        assert all(np.array_equal(a.rows, b.rows) and a.step == b.step for a, b in zip(rest, whole[start:]))


def test_too_few_images_for_a_batch():
    assert steps_per_epoch(7, 8, drop_last=False) == 1
    assert steps_per_epoch(17, 8, drop_last=False) == 2  # a last batch of one image is left out
    assert steps_per_epoch(7, 8, drop_last=True) == 0


def test_views_do_not_depend_on_workers_or_batch_size(images):
    listing = scan(images)
    alone = batches_of(listing)
    workers = batches_of(listing, workers=2)
    assert len(alone) == len(workers) == 6
    for one, other in zip(alone, workers):
        assert same(one.crops, other.crops)
        assert all(same(a, b) for a, b in zip(one.queries + one.keys, other.queries + other.keys))
        assert torch.equal(one.order, other.order)
        assert torch.equal(one.rows, other.rows)
    large = batches_of(listing, batch_size=16)[0]
    assert torch.equal(large.crops[0], torch.cat([batch.crops[0] for batch in alone[:2]]))
    assert torch.equal(large.queries[0].factors, torch.cat([batch.queries[0].factors for batch in alone[:2]]))
    unshuffled = torch.cat([batch.keys[0].factors[batch.order.argsort()] for batch in alone[:2]])
    assert torch.equal(large.keys[0].factors[large.order.argsort()], unshuffled)


def test_keys_may_have_views_of_their_own_size_and_scale(images):
    listing = scan(images)
    usual = batches_of(listing)[0]
    given = batches_of(listing, key_image_size=32, key_crop_scale=(0.4, 1.0))[0]  # the recipe's
    assert same(usual.crops, given.crops)
    own = batches_of(listing, key_image_size=48, key_crop_scale=(0.05, 0.1))[0]
    assert torch.equal(own.crops[0], usual.crops[0])
    assert own.crops[1].shape == (8, 3, 48, 48)
    smaller = batches_of(listing, key_crop_scale=(0.05, 0.1))[0]
    detail = [one.crops[1].float().diff(dim=3).abs().mean() for one in (smaller, usual)]
    assert detail[0] < 0.7 * detail[1]  # a small part, enlarged, is smooth


def test_two_processes_share_what_one_would_have(images):
    listing = scan(images)
    for settings in ({}, {"symmetric": True}, {"batchnorm": "none"}):
        (whole, *_), *halves = (batches_of(listing, rank=rank, size=size, **settings)
                                for rank, size in ((0, 1), (0, 2), (1, 2)))
        halves = [half[0] for half in halves]
        assert torch.equal(whole.rows, torch.cat([half.rows for half in halves]))
        for view in range(2):
            assert torch.equal(whole.crops[view], torch.cat([half.crops[view] for half in halves]))
        for name in ("queries", "keys"):
            for i, parameters in enumerate(getattr(whole, name)):
                for ours, *theirs in zip(parameters, *(getattr(half, name)[i] for half in halves)):
                    assert torch.equal(ours, torch.cat(theirs))
        assert (whole.order is None) == ("batchnorm" in settings)


def test_the_two_views_of_an_image_differ(images):
    batch = batches_of(scan(images))[0]
    assert batch.crops[0].shape == (8, 3, 32, 32)
    assert batch.crops[0].dtype == torch.uint8
    assert not torch.equal(*batch.crops)


def test_a_memory_bank_gets_one_view(images):
    bank, queue = (batches_of(scan(images), dictionary=name)[0] for name in ("memory-bank", "queue"))
    assert (len(bank.crops), bank.keys) == (1, [])
    assert torch.equal(bank.crops[0], queue.crops[0])
    assert same(bank.queries[0], queue.queries[0])


def test_full_decode_is_at_full_size(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    for i in range(8):
        Image.fromarray(noise).save(tmp_path / f"{i}.jpg")
    for i in range(8):
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.open(tmp_path / f"{i}.jpg").save(tmp_path / "png" / f"{i}.png")
    whole = batches_of(scan(tmp_path / "png"))[0]
    for path in tmp_path.glob("png/*.png"):
        path.unlink()
    full, scaled = (batches_of(scan(tmp_path), full_decode=full)[0] for full in (True, False))
    assert same(full.crops, whole.crops)
    assert not same(scaled.crops, whole.crops)


@pytest.mark.parametrize(("given", "images", "available", "expected"), [
    (0, 9999, 8, 0), (5, 10, 1, 5), (None, 10, 8, 1), (None, 501, 8, 7), (None, 501, 1, 1), (None, 9999, 64, 16)])
def test_there_is_a_loading_process_unless_none_is_asked_for(given, images, available, expected):
    assert worker_count(given, images, available) == expected


def test_an_unreadable_image_is_replaced_by_the_next_one_and_named(tmp_path, make_images):
    folder = make_images(tmp_path)
    (folder / "blue" / "001.jpg").write_bytes(b"not an image")
    batches = batches_of(scan(folder), epochs=1)
    (failure,) = [failure for batch in batches for failure in batch.failures]
    assert (failure.row, failure.error) == (1, "UnidentifiedImageError")
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert sorted(rows) == sorted([2] + [row for row in range(24) if row != 1])


def test_no_readable_image_at_all(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    batch = batches_of(scan(tmp_path))[0]
    assert batch.rows.tolist() == [-1] * 8
    assert {failure.row for failure in batch.failures} == set(range(8))


def test_a_long_run_of_unreadable_images_is_not_searched_to_its_end(tmp_path, make_images, monkeypatch):
    monkeypatch.setattr("mocoembed.data.loader.REPLACEMENTS", 2)
    folder = make_images(tmp_path)
    for path in (folder / "blue").iterdir():
        path.write_bytes(b"x")
    rows = np.array([0, 4, 6])
    batch = TwoViews(scan(folder), config())[Place(0, 0, rows, None, rows)]
    assert batch.rows.tolist() == [-1, -1, 8]
    assert len(batch.failures) == 3 + 3 + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_are_fixed_slices_with_blanks(tmp_path, make_images, workers):
    folder = make_images(tmp_path)
    (folder / "blue" / "003.jpg").write_bytes(b"")
    batches = list(evaluation_batches(scan(folder), TRANSFORM, 7, workers))
    assert [batch.first for batch in batches] == [0, 7, 14, 21]
    assert [len(batch.facts) for batch in batches] == [7, 7, 7, 3]
    assert [failure.row for batch in batches for failure in batch.failures] == [3]
    assert batches[0].pixels[3].sum() == 0
    assert batches[0].facts["height"].tolist() == [40, 40, 40, 0, 40, 40, 40]
    assert not any(batch.known.any() for batch in batches)


def test_images_with_known_bytes_are_not_decoded(tmp_path, make_images):
    folder = make_images(tmp_path)
    (batch,) = evaluation_batches(scan(folder), TRANSFORM, 24, 0)
    dataset = EvaluationImages(scan(folder), TRANSFORM, known=DigestTable(batch.facts["digest"][[3, 20]]))
    again = dataset[0, 24]
    assert np.flatnonzero(again.known).tolist() == [3, 20]
    assert again.facts["digest"].tolist() == batch.facts["digest"].tolist()
    assert again.facts["width"][3] == 0
    assert again.pixels[3].sum() == 0
    assert torch.equal(again.pixels[:3], batch.pixels[:3])
