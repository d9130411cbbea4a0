"""Several processes: the same numbers as one process, and a job that ends when one of them does."""

import dataclasses
import json
import math
from functools import partial

import pytest
import torch

from mocoembed.config import PretrainConfig
from mocoembed.model.ranks import ALONE
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.launch import start
from mocoembed.train.loop import pretrain_rank
from mocoembed.train.monitor import Watcher

VARIANTS = {
    "queue": {},
    "masked": {"mask_same_image": True, "queue_size": 40},
    "symmetric": {"symmetric": True},
    "four-groups": {"bn_groups": 4},
    "unshuffled": {"batchnorm": "none"},
    "end-to-end": {"dictionary": "end-to-end"},
    "end-to-end-separate": {"dictionary": "end-to-end", "key_encoder": "separate"},
    "memory-bank": {"dictionary": "memory-bank", "queue_size": 10},
}


@pytest.fixture(scope="module")
def config(pictures):
    return PretrainConfig.of("small", str(pictures), width=0.125, stem="3x3s2", dim=16, queue_size=20, batch_size=8,
                             bn_groups=2, image_size=32, epochs=7, workers=0, device="cpu", precision="fp64",
                             lr=0.003, warmup_epochs=0.0, mask_same_image=False, blur_probability=0.3, timeout=60.0)


def each_variant(folder, config, ranks, watcher):
    """Pretrain with every variant, one after another, in the same processes."""
    for name, changes in VARIANTS.items():
        pretrain_rank(dataclasses.replace(config, workspace=f"{folder}/{name}", check_ranks=True, **changes), ranks,
                      watcher)


def outcome(folder, name):
    """(losses, model) of a variant's run."""
    (run,) = (folder / name / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_newest(run)["model"]


@pytest.fixture(scope="module")
def both(config, tmp_path_factory):
    """The folders of all variants' runs with one process and with two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    each_variant(one, config, ALONE, Watcher())
    start(partial(each_variant, two), config, 2, Watcher())
    return one, two


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_equal_one_with_two_groups(both, name):
    """Over 21 steps in float64: losses, both encoders with their statistics, queue or bank, to 1e-9."""
    (losses, model), (losses_of_two, model_of_two) = (outcome(folder, name) for folder in both)
    assert len(losses) == 21
    assert losses_of_two == pytest.approx(losses, abs=1e-9)
    assert model.keys() == model_of_two.keys()
    for key, value in model.items():
        torch.testing.assert_close(model_of_two[key], value, rtol=0, atol=1e-9, msg=key)


def test_the_variants_differ(both):
    finals = [outcome(both[0], name)[0][-1] for name in VARIANTS]
    assert len({round(loss, 6) for loss in finals}) == len(VARIANTS)
    assert all(math.isfinite(loss) for loss in finals)
