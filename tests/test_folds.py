"""Stratified folds and held-out parts: every class even, copies together, the same for the same seed."""

from collections import Counter

import numpy as np
import pytest

from mocoembed.errors import CollectionError, UsageError
from mocoembed.evaluate.folds import (
    few_of_each,
    folds_of,
    gathered,
    held_out,
    near_duplicates,
    parse_labels,
    same_image,
)


def alone(names):
    return np.arange(len(names))


def test_same_image_groups_equal_bytes_and_leaves_the_unknown_alone():
    digests = np.array([b"b" * 32, b"\0" * 32, b"a" * 32, b"b" * 32, b"\0" * 32], "V32")
    assert same_image(digests).tolist() == [0, 1, 2, 0, 4]


def test_folds_are_stratified():
    names = list("aaaaaaaabbbbbbbccccccccccccc")
    fold = folds_of(names, alone(names), 5, seed=3)
    for name, count in Counter(names).items():
        sizes = Counter(fold[[one == name for one in names]].tolist())
        assert set(sizes) == set(range(5))
        assert set(sizes.values()) <= {count // 5, count // 5 + 1}
    assert max(Counter(fold.tolist()).values()) - min(Counter(fold.tolist()).values()) <= 1


def test_near_duplicates_join_copies_that_the_nearest_images_leave_out():
    """Of five copies each sees one other; the image beside them is near to one of them."""
    names, groups = ["a"] * 20, alone(["a"] * 20)
    groups[[3, 5, 7, 9, 11]] = 3
    similarities, rows = np.zeros((20, 1)), np.zeros((20, 1), np.int64)
    similarities[[3, 5, 7, 9, 11, 1]] = 1
    rows[[3, 5, 7, 9, 11, 1], 0] = [5, 3, 9, 7, 9, 11]
    first, apart = near_duplicates(similarities, rows, 0.9, names, groups)
    assert np.flatnonzero(first != np.arange(20)).tolist() == [3, 5, 7, 9, 11]
    assert (set(first[[3, 5, 7, 9, 11]]), apart) == ({1}, 0)
    first, apart = near_duplicates(similarities, rows, 0.9, ["a"] * 11 + ["b"] + ["c"] * 8, groups)
    assert (first.tolist(), apart) == (groups.tolist(), 6)  # the only image of b is among them


def test_near_duplicates_move_to_the_first_but_never_a_whole_class_into_one_fold():
    names, first = list("aaaabbbbb"), np.array([0, 1, 0, 1, 4, 4, 6, 7, 8])
    assert gathered(np.array([1, 1, 0, 0, 0, 1, 1, 0, 0]), first, names).tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 0]
    assert gathered(np.array([1, 0, 0, 1, 0, 1, 1, 0, 0]), first, names).tolist() == [1, 0, 1, 0, 0, 0, 1, 0, 0]
    assert gathered(np.array([2, 2, 0, 1, 0, 1, 2, 0, 1]), first, names).tolist() == [2, 0, 2, 0, 0, 0, 2, 0, 1]


def test_folds_keep_copies_together_and_depend_on_the_seed_alone():
    names = list("aabbaabbaabb") * 3
    groups = alone(names)
    groups[[4, 8, 21]] = 0  # one image four times; the last copy in a folder of another class
    names[21] = "b"
    for seed in range(5):
        fold = folds_of(names, groups, 3, seed)
        assert len(set(fold[[0, 4, 8, 21]].tolist())) == 1
        assert set(fold.tolist()) == {0, 1, 2}
        assert np.array_equal(fold, folds_of(names, groups, 3, seed))
    assert len({tuple(folds_of(names, groups, 3, seed).tolist()) for seed in range(5)}) == 5


def test_the_split_of_a_seed_is_the_same_everywhere():
    """Written down, so that results of today and of another machine are of the same folds."""
    names = list("aaaaabbbbb")
    assert folds_of(names, alone(names), 5, seed=0).tolist() == GOLDEN_FOLDS
    assert np.flatnonzero(held_out(names, alone(names), 0.2, seed=0)).tolist() == GOLDEN_HELD_OUT


GOLDEN_FOLDS = [3, 4, 0, 2, 1, 3, 0, 4, 2, 1]
GOLDEN_HELD_OUT = [2, 6]


def test_held_out_is_a_fifth_of_every_class_and_leaves_some_of_each():
    names = ["a"] * 50 + ["b"] * 10 + ["c"] * 2 + ["d"]
    for seed in range(4):
        chosen = held_out(names, alone(names), 0.2, seed)
        assert [int(chosen[[one == name for one in names]].sum()) for name in "abcd"] == [10, 2, 1, 0]


def test_held_out_keeps_copies_together():
    names = ["a"] * 10
    groups = np.array([0, 0, 0, 0, 4, 4, 6, 7, 8, 9])
    for seed in range(20):
        chosen = held_out(names, groups, 0.3, seed)
        assert len(set(chosen[:4].tolist())) == len(set(chosen[4:6].tolist())) == 1
        assert 0 < chosen.sum() < 10


def test_few_of_each_is_balanced_and_larger_numbers_take_more_of_the_same():
    names = ["a"] * 40 + ["b"] * 20
    groups = alone(names)
    groups[1] = 0
    few, more = (few_of_each(names, groups, labels, seed=1) for labels in ("5-per-class", "12-per-class"))
    assert Counter(np.array(names)[few].tolist()) == {"a": 5, "b": 5}
    assert Counter(np.array(names)[more].tolist()) == {"a": 12, "b": 12}
    assert (few <= more).all()
    assert Counter(np.array(names)[few_of_each(names, groups, "10%", seed=1)].tolist()) == {"a": 4, "b": 2}
    assert Counter(np.array(names)[few_of_each(names, groups, "1%", seed=1)].tolist()) == {"a": 1, "b": 1}
    assert few_of_each(names, groups, "100%", seed=1).sum() == 59  # of the two copies one
    assert not np.array_equal(few, few_of_each(names, groups, "5-per-class", seed=2))


@pytest.mark.parametrize("labels", ["0-per-class", "-1-per-class", "5", "5-per", "0%", "101%", "many", "", "nan%",
                                    "1.5-per-class", "%"])
def test_labels_that_are_no_number(labels):
    with pytest.raises(UsageError, match=r"must be a share such as 1%"):
        parse_labels(labels)


def test_what_cannot_be_split():
    with pytest.raises(CollectionError, match="class 'b' has 2 different images, too few for 5 folds"):
        folds_of(list("aaaaabb"), np.arange(7), 5, 0)
    with pytest.raises(CollectionError, match=r"class 'a' has 1 different image, too few for 2 folds. Give more"):
        folds_of(list("aa"), np.zeros(2, int), 2, 0)
    with pytest.raises(UsageError, match="--folds 1"):
        folds_of(list("ab"), np.arange(2), 1, 0)
    with pytest.raises(CollectionError, match="single image"):
        held_out(list("abc"), np.arange(3), 0.2, 0)
    with pytest.raises(CollectionError, match=r"--labels 3-per-class: class 'b' has 2 .* Give --labels 2-per-class"):
        few_of_each(list("aaabb"), np.arange(5), "3-per-class", 0)
