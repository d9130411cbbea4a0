"""benchmarks/gpu_check.py: its checks pass on a CPU, and a failed one is a failed script."""

import importlib
import json
import pathlib

import pytest
import torch
from click.testing import CliRunner

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def check(monkeypatch):
    """`check(*arguments)` runs the script on the CPU: (exit status, its last line, parsed)."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("gpu_check")

    def run(*arguments):
        result = CliRunner().invoke(script.main, ["--device", "cpu", "--quick", "--no-speed", *arguments])
        return result.exit_code, json.loads(result.stdout.splitlines()[-1])

    return run


def test_all_checks_but_the_compiler_pass_on_a_cpu(check):
    import gpu_checks

    names = [name for name in gpu_checks.CHECKS if name != "compile"]
    status, report = check("--only", ",".join(names))
    assert report["failed"] == []
    assert status == 0
    assert list(report["checks"]) == names


@pytest.mark.parametrize(("name", "part", "broken"), [
    ("groups", "GroupedBatchNorm2d", lambda features, groups: torch.nn.BatchNorm2d(features)),
    ("not-finite", "pretrain", lambda config: None),
    ("precisions", "NEAR", {"fp32": 0.0}),
])
def test_what_is_wrong_fails_the_script(check, monkeypatch, name, part, broken):
    import gpu_checks

    monkeypatch.setattr(gpu_checks, part, broken)
    status, report = check("--only", name)
    assert (status, report["failed"]) == (1, [name])


def test_a_check_that_is_not_there_is_refused(monkeypatch):
    """Else nothing would be checked, and all would be well."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("gpu_check")
    result = CliRunner().invoke(script.main, ["--device", "cpu", "--only", "views,viwes"])
    assert result.exit_code == 2
    assert "--only viwes: must be one of float64," in result.output
