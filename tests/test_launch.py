"""Joining what torchrun or srun has started; how many processes there are."""

import dataclasses

import pytest
import torch

from mocoembed.config import PretrainConfig
from mocoembed.errors import UsageError
from mocoembed.model.ranks import Ranks
from mocoembed.train.launch import first_host, joined_ranks, local_device, process_count

CONFIG = PretrainConfig.of("moco-v2", "images")
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "11", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2", "SLURM_STEP_TASKS_PER_NODE": "4(x2),3", "SLURM_STEP_NODELIST": "gpu[07-08,12]",
        "SLURM_JOB_ID": "123456"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """An environment of its own, put back afterwards."""
    import os

    given = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "MASTER"))
             and name not in TORCHRUN}
    monkeypatch.setattr(os, "environ", given)
    return given


def test_alone():
    assert joined_ranks() is None


def test_torchrun(environment):
    environment.update(TORCHRUN)
    assert joined_ranks() == Ranks(rank=5, size=8, local_rank=1, local_size=4)


def test_srun_sets_what_torch_reads(environment):
    environment.update(SRUN)
    assert joined_ranks() == Ranks(rank=9, size=11, local_rank=1, local_size=3)
    assert environment["MASTER_ADDR"] == "gpu07"
    assert environment["MASTER_PORT"] == str(20000 + (123456 + 2 * 1009) % 20000)


def test_srun_keeps_a_given_address(environment):
    environment.update(SRUN, MASTER_ADDR="10.0.0.1", MASTER_PORT="5")
    joined_ranks()
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "5")


@pytest.mark.parametrize("changes", [{"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_ID": None}])
def test_a_lone_task_or_the_batch_script_itself_is_no_group(environment, changes):
    environment.update(SRUN)
    for name, value in changes.items():
        environment.pop(name) if value is None else environment.update({name: value})
    assert joined_ranks() is None


@pytest.mark.parametrize(("nodes", "host"), [
    ("node1", "node1"), ("gpu[03-05,9],login1", "gpu03"), ("a[1,2]-ib", "a1-ib"), ("x1,x2", "x1"),
    ("rack2-gpu[001-128]", "rack2-gpu001"), ("n[5]", "n5")])
def test_first_host_of_a_node_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize(("given", "device", "gpus", "count"), [
    (None, "auto", 0, 1), (None, "auto", 4, 4), (None, "cuda", 2, 2), (None, "cuda:1", 4, 1), (None, "cpu", 4, 1),
    (3, "cpu", 0, 3), (2, "auto", 4, 2)])
def test_process_count(monkeypatch, given, device, gpus, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert process_count(dataclasses.replace(CONFIG, processes=given, device=device)) == count


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = [Ranks(rank, 3, rank, 3) for rank in range(3)]
    assert [local_device(CONFIG, one) for one in ranks[:2]] == ["cuda:0", "cuda:1"]
    with pytest.raises(UsageError, match="--processes 3: this machine has 2 visible GPUs"):
        local_device(CONFIG, ranks[2])
    with pytest.raises(UsageError, match="--device cuda:1: one GPU cannot serve 3 processes"):
        local_device(dataclasses.replace(CONFIG, device="cuda:1"), ranks[0])
    assert local_device(dataclasses.replace(CONFIG, device="cpu"), ranks[2]) == "cpu"
