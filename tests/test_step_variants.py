"""benchmarks/step_variants.py: its variants compute what the step computes; it goes on where it was stopped."""

import contextlib
import dataclasses
import json

import pytest
import torch
from click.testing import CliRunner

from benchmarks import step_variants
from benchmarks.batchnorm_speed import Fused
from benchmarks.step_variants import AGAINST, AS_IT_IS, ENVIRONMENTS, VARIANTS, config_of
from benchmarks.step_variants_steps import Steps, made, rounds_to_bf16
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.train.run import set_up

UNCOMPILED = [name for name in VARIANTS if "compiled" not in name]
NEAR = {"bf16": 0.3, "oneDNN multiplies in bf16": 0.3}  # of the loss, which random keys make small


@pytest.fixture(scope="module")
def steps():
    return Steps(config_of("cifar-64", quick=True), VARIANTS)


@pytest.mark.parametrize("name", [name for name in UNCOMPILED if name not in (AS_IT_IS, "symmetric")])
def test_a_variant_gives_the_steps_loss(steps, name):
    found, wanted = steps.take(name), steps.take(AGAINST.get(name, AS_IT_IS))
    if name in NEAR and "left_out" in found:
        pytest.skip(found["left_out"])  # this processor has none
    assert found["loss"] == pytest.approx(wanted["loss"], rel=NEAR.get(name, 1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if "compiled" in name and "bf16" not in name])
def test_a_compiled_variant_gives_the_steps_loss(steps, name):
    wanted = steps.take(AGAINST.get(name, AS_IT_IS))
    assert steps.take(name)["loss"] == pytest.approx(wanted["loss"], rel=1e-3)


def test_both_views_at_once_learn_the_same(monkeypatch):
    weights = []
    for name in ("symmetric", "symmetric, both views at once"):
        config = dataclasses.replace(config_of("cifar-64", quick=True), **VARIANTS[name])
        trainings = []
        monkeypatch.setattr("benchmarks.step_variants_steps.set_up",
                            lambda *given, found=trainings: found.append(set_up(*given)) or found[0])
        step = made(name, config)
        step([torch.linspace(-1, 1, 8 * 3 * 32 * 32).view(8, 3, 32, 32).sin(), torch.ones(8, 3, 32, 32).cumsum(0).cos()
              + torch.linspace(0, 3, 32)])
        method = trainings[0].method
        weights.append([*method.encoder_q.parameters(), *method.encoder_k.parameters(), method.queue.keys])
    for one, other in zip(*weights, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_a_setting_without_effect_is_seen():
    assert not rounds_to_bf16(contextlib.nullcontext)
    assert rounds_to_bf16(lambda: torch.autocast("cpu", torch.bfloat16))


def test_one_thing_alone_is_changed_in_each_variant(steps):
    assert set(AGAINST) < set(VARIANTS)
    config, changed = steps.config, {}
    for name, changes in VARIANTS.items():
        other = dataclasses.replace(config, **changes)
        changed[name] = {field for field in vars(config) if getattr(config, field) != getattr(other, field)}
    assert {name for name, fields in changed.items() if "compile" in fields} == {
        "compiled", "bf16, compiled", "symmetric, both views at once, compiled"}
    assert {name for name, fields in changed.items() if "precision" in fields} == {"bf16", "bf16, compiled"}
    assert {name for name, fields in changed.items() if "symmetric" in fields} == {
        name for name in VARIANTS if name.startswith("symmetric")}
    assert set().union(*changed.values()) == {"compile", "precision", "symmetric"}
    assert (config.batch_size, config.bn_groups, config.precision, config.device) == (8, 2, "fp32", "cpu")
    for case, batch in (("cifar-64", 64), ("r50-96-256", 256)):
        assert (config_of(case, False).batch_size, config_of(case, False).bn_groups) == (batch, 8)
    assert config_of("r50-224-64", False).image_size == 224


class Counted:
    """A child that is killed after some steps."""

    left, asked = 10**6, []

    def __init__(self, case, quick, environment):
        self.environment = environment

    def step(self, variant):
        if not Counted.left:
            raise KeyboardInterrupt
        Counted.left -= 1
        Counted.asked.append((variant, self.environment))
        return {"left_out": "no"} if variant == "bf16" else {"seconds": 1.0 + (variant == "plain layout"), "loss": 2.5}

    def end(self):
        pass


def test_it_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(step_variants, "Child", Counted)
    path, names = tmp_path / "out.jsonl", (AS_IT_IS, "bf16", "plain layout", "threads wait actively")
    Counted.left = 6
    with pytest.raises(KeyboardInterrupt):
        step_variants.measure("cifar-64", path, names, 7, True)
    with open(path, "a") as file:
        file.write('{"case": "cif')  # cut off
    Counted.left = 10**6
    step_variants.measure("cifar-64", path, names, 7, True)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(one["round"], one["variant"]) for one in lines] == [(turn, name) for turn in range(7) for name in names]
    assert (AS_IT_IS, ENVIRONMENTS["threads wait actively"]) in Counted.asked
    table = step_variants.report(path)
    assert "| plain layout | 7 | 2.000 (2.000 to 2.000) | 0.500 (0.500 to 0.500) | 2.50000 |" in table
    assert "| bf16 | | left out: no | | |" in table
    step_variants.measure("r50-224-64", path, names, 1, True)
    assert "threads wait actively" not in step_variants.report(path).partition("r50-224-64")[2]


def test_the_command_measures_in_processes_and_reports(tmp_path):
    path = tmp_path / "out.jsonl"
    result = CliRunner().invoke(step_variants.main, [str(path), "--quick", "--case", "cifar-64", "--rounds", "1",
                                                     "--variant", AS_IT_IS, "--variant", "threads wait actively"])
    assert result.exit_code == 0, result.output
    (one, other) = step_variants.lines_of(path)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert "| threads wait actively | 1 |" in result.output


def test_the_time_for_layouts_is_what_onednn_says_of_the_last_step():
    lines = ["onednn_verbose,v1,info,oneDNN v3", "onednn_verbose,v1,primitive,exec,cpu,reorder,jit,undef,a,,,1x1,100",
             '{"seconds": 9.0, "loss": 1.0}', "onednn_verbose,v1,primitive,exec,cpu,reorder,jit,undef,a,,,1x1,50.0",
             "onednn_verbose,v1,primitive,exec,cpu,convolution,brg,forward_training,a,,,mb1,120.0",
             '{"seconds": 0.5, "loss": 1.0}']
    assert step_variants.shares(lines) == "50.0 of 500.0 ms convert layouts (10.0%); all of oneDNN 170.0 ms"


def test_fused_batchnorm_is_that_of_the_groups():
    torch.manual_seed(0)
    x = torch.randn(8, 6, 5, 5).contiguous(memory_format=torch.channels_last)
    layers, found = [GroupedBatchNorm2d(6, 4), Fused(6, 4)], []
    for layer in layers:
        given = x.clone().requires_grad_()
        y = layer(given)
        (y ** 3).sum().backward()
        found.append([y, given.grad, layer.weight.grad, layer.running_mean, layer.running_var])
        assert y.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)
