"""The memory bank and the end-to-end dictionary against their definitions written out."""

import copy

import pytest
import torch
from torch.nn import functional

from mocoembed.config import PretrainConfig
from mocoembed.errors import UsageError
from mocoembed.model.loss import info_nce
from mocoembed.model.moco import Views
from mocoembed.model.precision import Compute
from mocoembed.train.run import set_up
from mocoembed.train.step import training_step

CPU = Compute.of("cpu", "fp64")


def built(dictionary, images=40, **changes):
    config = PretrainConfig.of("small", "images", **{
        "width": 0.125, "stem": "3x3s2", "dim": 16, "queue_size": 20, "batch_size": 8, "bn_groups": 1, "lr": 0.1,
        "temperature": 0.1, "image_size": 16, "precision": "fp64", "dictionary": dictionary, **changes})
    return set_up(config, CPU, images)


def views(step, rows):
    torch.manual_seed(step)
    x = torch.randn(len(rows), 3, 16, 16, dtype=torch.float64)
    x_q, x_k = (x + 0.3 * torch.randn_like(x) for _ in range(2))
    return Views([x_q], [x_k], torch.tensor(rows), None, step)


def step_of(training, one):
    return float(training_step(training, one, (), lambda numbers: None)[0, 0])


def test_memory_bank_equals_its_definition():
    """InstDisc's update with the momentum on the features; the positive is the image's own stored feature."""
    training = built("memory-bank", bank_momentum=0.3)
    f_q = copy.deepcopy(training.method.encoder_q)
    bank = training.method.bank.clone()
    optimizer = torch.optim.SGD(f_q.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        rows = list(range(8 * step, 8 * step + 8))
        one = views(step, rows)
        negatives = training.method.key(None, one).negatives.T
        drawn = [int((bank - vector).abs().sum(1).argmin()) for vector in negatives]
        assert len(set(drawn)) == 20
        assert not set(drawn) & set(rows)
        assert torch.equal(bank[drawn], negatives)
        loss = step_of(training, one)
        q = functional.normalize(f_q(one.queries[0]), dim=1)
        logits = torch.cat([(q * bank[rows]).sum(1, keepdim=True), q @ bank[drawn].T], 1) / 0.1
        by_hand = functional.cross_entropy(logits, torch.zeros(8, dtype=torch.long))
        assert loss == pytest.approx(by_hand.item(), abs=1e-10)
        optimizer.zero_grad()
        by_hand.backward()
        optimizer.step()
        for row, vector in zip(rows, q.detach()):
            bank[row] = functional.normalize(0.3 * bank[row] + 0.7 * vector, dim=0)
        torch.testing.assert_close(training.method.bank, bank, rtol=0, atol=1e-12)
    for ours, theirs in zip(training.method.encoder_q.parameters(), f_q.parameters()):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert not hasattr(training.method, "encoder_k")


def test_memory_bank_draws_anew_in_every_step_and_the_same_on_a_rerun():
    method = built("memory-bank").method
    first, again, other = (method.key(None, views(step, [1, 2])).negatives for step in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_image_twice_in_a_batch_moves_its_feature_once():
    method = built("memory-bank", bank_momentum=0.0).method
    q = functional.normalize(torch.randn(3, 16, dtype=torch.float64), dim=1)
    method.remember([q], [], views(0, [5, 7, 5]))
    torch.testing.assert_close(method.bank[5], q[0])
    torch.testing.assert_close(method.bank[7], q[1])


def test_memory_bank_refuses_more_keys_than_images():
    with pytest.raises(UsageError, match=r"--queue-size 33: must be 32 or less with --dictionary memory-bank"):
        built("memory-bank", queue_size=33)


@pytest.mark.parametrize("key_encoder", ["shared", "shared-backbone", "separate"])
def test_end_to_end_equals_its_definition(key_encoder):
    """Keys are the batch; gradients reach whatever made q and k."""
    training = built("end-to-end", key_encoder=key_encoder)
    f_q = copy.deepcopy(training.method.encoder_q)
    f_k = f_q if key_encoder == "shared" else copy.deepcopy(f_q)
    if key_encoder == "shared-backbone":
        f_k.backbone = f_q.backbone
    parameters = list(torch.nn.ModuleList([f_q, f_k]).parameters())  # each once
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, weight_decay=5e-4)
    for step in range(4):
        one = views(step, list(range(8)))
        loss = step_of(training, one)
        q, k = (functional.normalize(f(x), dim=1) for f, x in ((f_q, one.queries[0]), (f_k, one.keys[0])))
        by_hand = functional.cross_entropy(q @ k.T / 0.1, torch.arange(8))
        assert loss == pytest.approx(by_hand.item(), abs=1e-9)
        optimizer.zero_grad()
        by_hand.backward()
        optimizer.step()
    ours = [parameter for parameter in training.method.parameters() if parameter.requires_grad]
    assert len(ours) == len(parameters)
    for one, other in zip(ours, parameters):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)
    if key_encoder == "shared-backbone":
        heads = [training.method.encoder_q.head.fc.weight, training.method.head_k.fc.weight]
        assert not torch.equal(*heads)


def test_one_backbone_and_two_heads_are_saved_once():
    shared, method = built("end-to-end").method, built("end-to-end", key_encoder="shared-backbone").method
    more = set(method.state_dict()) - set(shared.state_dict())
    assert more == {f"head_k.{name}" for name in shared.encoder_q.head.state_dict()}
    assert all(torch.equal(value, method.encoder_q.head.state_dict()[name])
               for name, value in method.head_k.state_dict().items())  # the two start equal


def test_end_to_end_compares_no_image_with_its_own_double():
    """An image that stands in for an unreadable one is in the batch twice: neither is the other's negative."""
    method = built("end-to-end").method
    one = views(0, [1, 2, 2, 3])
    with torch.no_grad():
        keys = method.key(one.keys[0], one)
    assert keys.excluded.tolist() == [[True, False, False, False], [False, True, True, False],
                                      [False, True, True, False], [False, False, False, True]]
    assert float(info_nce(keys.positive, keys.positive, keys.negatives, 0.1, keys.excluded).top1) == 1.0
