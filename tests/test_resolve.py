"""`--recipe auto` from the command line: what it says, what it records, and that its command is the same run."""

import dataclasses
import json
import shlex

import pytest
import torch

from mocoembed.checks import to_dict
from mocoembed.config import PretrainConfig
from mocoembed.data.images import scan
from mocoembed.errors import UsageError
from mocoembed.memory import GIB, shown
from mocoembed.model.cost import multiplications, work
from mocoembed.model.encoder import EncoderSpec
from mocoembed.model.precision import Compute
from mocoembed.train import resolve
from mocoembed.train.loop import pretrain
from mocoembed.train.memory_plan import least_needed, plan
from mocoembed.train.monitor import Watcher
from mocoembed.train.resolve import Machine, command_of, resolved, with_processes
from mocoembed.train.run import set_up

TINY = ["--width", "0.125", "--epochs", "2", "--workers", "0"]


def test_the_default_says_what_it_chose_and_its_command_is_the_same_run(tmp_path, images, run_cli):
    workspace = ["--workspace", tmp_path / "ws"]
    status, _, err = run_cli("pretrain", images, *TINY, *workspace)
    assert status == 0
    for said in ("24 images, shorter side 40 pixels in the median", "few to learn from scratch", "epoch 2/2"):
        assert said in err
    (run,) = (tmp_path / "ws" / "runs").iterdir()
    recorded = json.loads((run / "config.json").read_text())
    assert (recorded["recipe"], recorded["given"], recorded["batch_size"], recorded["dictionary"]) \
        == ("cifar10", [], 24, "end-to-end")
    (command,) = [line.partition(": ")[2] for line in err.splitlines() if line.startswith("  the same run anywhere")]
    words = shlex.split(command)
    assert "--cache" not in words  # two epochs do not pay for it
    _, again, _ = run_cli(*words[1:])
    assert "(already complete)" in again
    assert f"run {run}" in again
    words[words.index("--workspace") + 1] = str(tmp_path / "other")
    run_cli(*words[1:])
    of_both = [{path.name for path in (tmp_path / name / "encoders").iterdir()} for name in ("ws", "other")]
    assert of_both[0] == of_both[1]  # named by their fingerprint
    _, again, _ = run_cli("pretrain", images, *TINY, *workspace)
    assert "(already complete)" in again  # the short command resumes, too


def test_a_start_from_other_weights_brings_its_network(tmp_path, images, workspace, run_cli):
    arguments = ["pretrain", images, "--init", workspace / "encoder.safetensors", "--epochs", 1, "--workers", 0]
    status, _, err = run_cli(*arguments, "--workspace", tmp_path)
    assert status == 0
    assert "the network of --init, views of 32 pixels" in err
    assert "few to learn from scratch" not in err
    (run,) = (tmp_path / "runs").iterdir()
    recorded = json.loads((run / "config.json").read_text())
    assert (recorded["width"], recorded["stem"]) == (0.125, "3x3s2")  # the fixture's
    (command,) = [line.partition(": ")[2] for line in err.splitlines() if line.startswith("  the same run anywhere")]
    assert "(already complete)" in run_cli(*shlex.split(command)[1:])[1]


def test_fields_that_differ_from_the_defaults_count_as_given(images):
    listing = scan(str(images))
    plain, _ = resolved(PretrainConfig(str(images), epochs=3, bn_groups=2), listing, Machine())
    assert (plain.epochs, plain.bn_groups, plain.batch_size) == (3, 2, 24)
    assert plain.dictionary == "end-to-end"  # not the default, which nobody gave
    given, _ = resolved(PretrainConfig.of("auto", str(images), queue_size=65536), listing, Machine())
    assert (given.dictionary, given.queue_size) == ("queue", 65536)


def test_a_config_survives_its_command(run_cli, monkeypatch):
    """Every field that differs from the recipe and changes the result, through a shell's eyes."""
    config = PretrainConfig.of("moco-v1", "my 'images'", arch="resnet18", width=0.375, jitter=(0.1, 0.2, 0.3, 0.4),
                               grey_first=False, symmetric=True, decay_norms=False, lr=0.0123456789, cache="ram",
                               mask_same_image=False, milestones=(0.5,), run="a b", workspace="w",
                               exclude=("*.png", "old raw"), value_range=(0.0, 4095.5))
    assert "--value-range 0,4095.5" in command_of(config)
    arrived = []
    monkeypatch.setattr("mocoembed.train.loop.pretrain", lambda config, watcher: arrived.append(config) or 1 / 0)
    run_cli(*shlex.split(command_of(config))[1:])
    assert arrived == [config]
    started = PretrainConfig.of("small", "images", init="moco-v2-800ep", epochs=3)
    assert command_of(started) == "mocoembed pretrain images --recipe small --init moco-v2-800ep --epochs 3"
    assert command_of(dataclasses.replace(config, val="v"), ("val",)).endswith(" --val v")
    run_cli(*shlex.split(command_of(dataclasses.replace(config, device="cpu", workers=3, val="v")))[1:])
    assert arrived[1] == config  # what changes nothing of the result is left out


def test_two_processes_agree(tmp_path, images):
    begun, notes = [], []
    config = PretrainConfig.of("auto", str(images), workspace=str(tmp_path), width=0.125, epochs=1, workers=0,
                               device="cpu", processes=2, check_ranks=True)
    result = pretrain(config, Watcher(note=notes.append, begin=begun.append))
    assert result.steps == 1
    assert (begun[0].batch_size, begun[0].bn_groups, begun[0].recipe) == (24, 2, "cifar10")
    assert sum(line.startswith("--recipe auto") for line in notes) == 1


@pytest.fixture
def two_cores(monkeypatch):
    """A machine of two cores and much memory, on which no run is too short for two processes."""
    monkeypatch.setattr(resolve, "cores", lambda: 2)
    monkeypatch.setattr(resolve, "available_memory", lambda sharing=1: (20 << 30) // sharing)
    monkeypatch.setattr(resolve, "LONG_RUN", 20)


def test_a_small_network_gets_two_processes(images, two_cores, monkeypatch):
    config = PretrainConfig.of("auto", str(images), width=0.25)
    assert with_processes(config) == dataclasses.replace(config, processes=2)
    small, _ = resolved(config, scan(str(images)), Machine(processes=2))
    cost = work(EncoderSpec(small.arch, small.width, small.stem, "linear", 128), small.image_size)
    monkeypatch.setattr(resolve, "SMALL_NETWORK", cost - 1)
    assert with_processes(config) == config


@pytest.mark.parametrize("given", [
    {"processes": 1}, {"bn_groups": 1, "batch_size": 8}, {"batch_size": 9, "bn_groups": 3}, {"batchnorm": "sync"},
    {"batch_size": 2}, {"drop_last": False}, {"init": "moco-v2-800ep"}, {"limit": 12}])
def test_one_process_where_two_would_not_do_as_was_asked(images, two_cores, given):
    config = PretrainConfig.of("auto", str(images), width=0.25, **given)
    assert with_processes(config) == config


@pytest.mark.parametrize(("name", "value"), [("cores", lambda: 1), ("available_memory", lambda sharing: 1 << 30),
                                             ("LONG_RUN", 24 * 400 + 1)])
def test_one_process_on_one_core_in_little_memory_and_for_a_short_run(images, two_cores, monkeypatch, name, value):
    monkeypatch.setattr(resolve, name, value)
    config = PretrainConfig.of("auto", str(images), width=0.25)
    assert with_processes(config) == config


def test_another_recipe_keeps_one_process(images, two_cores):
    config = PretrainConfig.of("small", str(images), bn_groups=2)
    assert with_processes(config) == config


def test_the_two_processes_run_and_are_said(tmp_path, images, two_cores, run_cli):
    status, _, err = run_cli("pretrain", images, *TINY, "--device", "cpu", "--workspace", tmp_path)
    assert status == 0
    assert "\n  2 processes: " in err
    assert "2 processes: each has 12 of the batch's 24 images" in err
    assert "deprecated" not in err


def test_one_process_on_a_gpu_and_in_a_group_of_torchrun(images, two_cores, monkeypatch):
    config = PretrainConfig.of("auto", str(images), width=0.25)
    monkeypatch.setattr(resolve, "joined_ranks", lambda: "a group")
    assert with_processes(config) == config
    monkeypatch.setattr(resolve, "joined_ranks", lambda: None)
    monkeypatch.setattr(Compute, "of", lambda device, precision: Compute(torch.device("cuda"), precision))
    assert with_processes(config) == config


def test_little_memory_gets_a_smaller_network_and_the_command_says_so(images):
    listing, config = scan(str(images)), PretrainConfig.of("auto", str(images), image_size=96)
    plenty, said = resolved(config, listing, Machine(memory=64 * GIB))
    assert said[0].endswith("cores, 64.00 GiB available")
    assert not any("and 64.00 GiB are available" in line for line in said)
    most = least_needed(plenty, 24, 1, 0, on_cpu=True)
    chosen, said = resolved(config, listing, Machine(memory=most))
    assert least_needed(chosen, 24, 1, 0, on_cpu=True) < 0.85 * most
    (line,) = [line for line in said if "it would take" in line]
    assert line.startswith(f"  it would take {shown(most)} even computed in the smallest parts, and {shown(most)} are")
    assert (chosen.image_size, chosen.epochs) == (96, plenty.epochs)  # what was given stays
    assert f"--width {chosen.width}" in said[-1]


def test_the_memory_that_is_estimated_without_a_trial_is_about_what_a_trial_measures(images, monkeypatch):
    """On a CPU, where both count the same tensors; the estimate has the encoders and the queue besides."""
    config = PretrainConfig.of("small", str(images), device="cpu", mask_same_image=False)
    training = set_up(config, Compute.of("cpu", "fp32"), 24)
    by_trial = plan(training, 0, lambda text: None).needed(1)
    weights = sum(4 * one.numel() for one in training.method.encoder_q.parameters())
    assert least_needed(config, 24, 1, 0, on_cpu=True) == by_trial + 2 * weights + 4 * 128 * 512


def test_a_whole_run_where_the_first_choice_would_not_fit(images, tmp_path, monkeypatch):
    """The memory that `auto` and the plan of a step see is limited: `auto` chooses what the plan then accepts."""
    config = PretrainConfig.of("auto", str(images), workspace=str(tmp_path), arch="resnet18", image_size=64, epochs=1,
                               workers=0, device="cpu", stem="7x7s2-pool")
    wide, _ = resolved(config, scan(str(images)), Machine())
    limit = least_needed(wide, 24, 1, 0, on_cpu=True)
    monkeypatch.setattr("mocoembed.train.memory_plan.available_memory", lambda sharing=1: limit)
    notes, begun = [], []
    assert pretrain(config, Watcher(note=notes.append, begin=begun.append)).steps == 1
    assert begun[0].width < wide.width
    assert any("it would take" in line for line in notes)
    assert any(line.startswith("memory: ") for line in notes)


def test_settings_that_do_not_go_together_are_refused(images):
    with pytest.raises(UsageError, match="--bn-groups 5: must be a divisor of --batch-size 12"):
        PretrainConfig.of("auto", str(images), batch_size=12, bn_groups=5)
    with pytest.raises(UsageError, match="--bn-groups 4: must be a multiple of the 3 processes"):
        resolved(PretrainConfig.of("auto", str(images), batch_size=12, bn_groups=4), scan(str(images)),
                 Machine(processes=3))


def test_a_resolved_config_is_recorded_as_if_it_had_been_typed(images):
    config, _ = resolved(PretrainConfig.of("auto", str(images)), scan(str(images)), Machine())
    assert to_dict(config)["given"] == []
    assert (config.recipe, config.cache) == ("cifar10", "ram")


@pytest.mark.parametrize(("arch", "millions"), [("resnet18", 1814), ("resnet50", 4089)])
def test_multiplications_are_those_that_are_published(arch, millions):
    """He et al. 2016, table 1: 1.8 and 3.8 billion; torchvision, whose bottlenecks stride later: 1.81 and 4.09."""
    counted = multiplications(EncoderSpec(arch, 1.0, "7x7s2-pool", "linear", 128), 224)
    assert counted == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(("arch", "times"), [("mobilenet_v2", 2.7), ("vit_b_16", 1.1), ("resnet18", 1.0)])
def test_networks_that_multiply_little_are_not_taken_for_fast(arch, times):
    """MobileNet's 300 million multiplications write 20 million numbers, which takes longer than they do."""
    spec = EncoderSpec(arch, 1.0, "7x7s2-pool", "linear", 128)
    assert work(spec, 224) == pytest.approx(times * multiplications(spec, 224), rel=0.15)
