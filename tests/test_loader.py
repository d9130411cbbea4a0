"""Batches: the same for any number of workers, resumable anywhere, whole beside unreadable files."""

import numpy as np
import pytest
import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.images import scan
from mocoembed.data.loader import Place, Places, TwoViews, evaluation_batches, steps_per_epoch, view_batches
from mocoembed.data.views import EvaluationTransform, ViewSettings
from mocoembed.errors import CollectionError

TRANSFORM = EvaluationTransform(32, 32, (0.5,) * 3, (0.5,) * 3)


def config(**overrides):
    return PretrainConfig.of("small", "pictures", **{"batch_size": 8, "bn_groups": 2, "image_size": 32, "epochs": 2,
                                                     "workers": 0, **overrides})


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


def test_every_picture_comes_once_an_epoch_in_another_order():
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


def test_too_few_pictures_for_a_batch():
    assert steps_per_epoch(7, 8, drop_last=False) == 1
    assert steps_per_epoch(17, 8, drop_last=False) == 2  # a last batch of one picture is left out
    with pytest.raises(CollectionError, match="7 pictures do not fill one batch of 8"):
        steps_per_epoch(7, 8, drop_last=True)


def test_views_do_not_depend_on_workers_or_batch_size(pictures):
    listing = scan(pictures)
    alone = list(view_batches(listing, config(), 0, pin=False))
    workers = list(view_batches(listing, config(workers=2), 0, pin=False))
    assert len(alone) == len(workers) == 6
    for one, other in zip(alone, workers):
        assert same(one.crops, other.crops)
        assert all(same(a, b) for a, b in zip(one.parameters, other.parameters))
        assert torch.equal(one.rows, other.rows)
    large = next(iter(view_batches(listing, config(batch_size=16), 0, pin=False)))
    assert torch.equal(large.crops[0], torch.cat([batch.crops[0] for batch in alone[:2]]))
    assert torch.equal(large.parameters[1].factors, torch.cat([batch.parameters[1].factors for batch in alone[:2]]))


def test_the_two_views_of_a_picture_differ(pictures):
    batch = next(iter(view_batches(scan(pictures), config(), 0, pin=False)))
    assert batch.crops[0].shape == (8, 3, 32, 32)
    assert batch.crops[0].dtype == torch.uint8
    assert not torch.equal(*batch.crops)


def test_an_unreadable_picture_is_replaced_by_the_next_one_and_named(tmp_path, make_pictures):
    folder = make_pictures(tmp_path)
    (folder / "blue" / "001.jpg").write_bytes(b"not a picture")
    batches = list(view_batches(scan(folder), config(epochs=1), 0, pin=False))
    (failure,) = [failure for batch in batches for failure in batch.failures]
    assert (failure.row, failure.error) == (1, "UnidentifiedImageError")
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert sorted(rows) == sorted([2] + [row for row in range(24) if row != 1])


def test_no_readable_picture_at_all(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.jpg").write_bytes(b"x")
    batch = next(iter(view_batches(scan(tmp_path), config(), 0, pin=False)))
    assert batch.rows.tolist() == [-1] * 8
    assert {failure.row for failure in batch.failures} == set(range(8))


def test_a_long_run_of_unreadable_pictures_is_not_searched_to_its_end(tmp_path, make_pictures, monkeypatch):
    monkeypatch.setattr("mocoembed.data.loader.REPLACEMENTS", 2)
    folder = make_pictures(tmp_path)
    for path in (folder / "blue").iterdir():
        path.write_bytes(b"x")
    place = Place(0, 0, np.array([0, 4, 6]))
    batch = TwoViews(scan(folder), ViewSettings.of(config()), 0)[place]
    assert batch.rows.tolist() == [-1, -1, 8]
    assert len(batch.failures) == 3 + 3 + 2


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_batches_are_fixed_slices_with_blanks(tmp_path, make_pictures, workers):
    folder = make_pictures(tmp_path)
    (folder / "blue" / "003.jpg").write_bytes(b"")
    batches = list(evaluation_batches(scan(folder), TRANSFORM, 7, workers))
    assert [batch.first for batch in batches] == [0, 7, 14, 21]
    assert [len(batch.facts) for batch in batches] == [7, 7, 7, 3]
    assert [failure.row for batch in batches for failure in batch.failures] == [3]
    assert batches[0].pixels[3].sum() == 0
    assert batches[0].facts["height"].tolist() == [40, 40, 40, 0, 40, 40, 40]
    resumed = list(evaluation_batches(scan(folder), TRANSFORM, 7, workers, start=14))
    assert torch.equal(resumed[0].pixels, batches[2].pixels)
