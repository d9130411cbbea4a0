"""`make gpu` end to end on a CPU with tiny sizes: every piece runs, is kept, and is not run again."""

import json
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

from benchmarks.reproduce import gpu, gpu_pieces


def run(*arguments):
    result = CliRunner().invoke(gpu.main, [str(one) for one in arguments])
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a whole run, in a process of its own, and its exit status."""
    output = tmp_path_factory.mktemp("gpu")
    done = subprocess.run([sys.executable, "-m", "benchmarks.reproduce.gpu", str(output), "--device", "cpu", "--quick"],
                          cwd=gpu_pieces.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return output


def test_every_piece_gives_its_rows(whole):
    report = json.loads((whole / "gpu.json").read_text())
    assert report["unfinished"] == {}
    assert [piece["piece"] for piece in report["pieces"]] == list(gpu_pieces.PIECES)
    assert [piece["left_out"] for piece in report["pieces"] if "left_out" in piece] == ["a CPU has no fp16"]
    figures = {row["what"]: row["figure"] for piece in report["pieces"] for row in piece["rows"]}
    for start in ("checks of", "step of R50 at 224, bf16: ours against the bare", "two views", "embedding with",
                  "FAISS Flat on the CPU", "CIFAR-10, 200 epochs, asymmetric", "CIFAR-10, 200 epochs, symmetric"):
        assert any(what.startswith(start) and figure > 0 for what, figure in figures.items() if figure), start
    assert "not measured: give --official" in (whole / "gpu.md").read_text()


def test_a_second_call_runs_nothing_and_gives_the_same_table(whole, monkeypatch):
    monkeypatch.setattr(gpu, "PIECES", dict.fromkeys(gpu.PIECES))
    before = (whole / "gpu.md").read_text()
    assert run(whole, "--device", "cpu", "--quick") == (0, before + "\n")
    status, output = run(whole, "--device", "cpu", "--quick", "--piece", "check", "--seconds", 1)
    assert (status, output) == (0, before + "\n")


def test_out_of_time_and_failures_are_told_and_tried_again(tmp_path, monkeypatch):
    def broken(lab):
        raise ValueError("no such\nthing")

    def late(lab):
        raise gpu_pieces.OutOfTime("7 steps")

    monkeypatch.setattr(gpu, "PIECES", {"check": broken, "loading": late, "search": lambda lab: []})
    status, output = run(tmp_path, "--device", "cpu", "--quick")
    assert status == 1
    assert "- check: failed: ValueError: no such thing" in output
    assert "- loading: not finished: 7 steps" in output
    monkeypatch.setattr(gpu, "PIECES", {"check": lambda lab: [], "loading": late, "search": broken})  # `search` is kept
    status, output = run(tmp_path, "--device", "cpu", "--quick")
    assert status == gpu.MORE_TO_DO
    assert "- check" not in output
    status, output = run(tmp_path / "other", "--device", "cpu", "--quick", "--seconds", 5)
    assert status == gpu.MORE_TO_DO
    assert output.count("not begun") == 3


def test_too_little_memory_leaves_a_piece_out_and_none_is_kept_from_the_next(tmp_path, monkeypatch):
    given_back = []

    def large(lab):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu, "PIECES", {"step-bf16": large, "search": lambda lab: []})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(len(given_back)))
    status, output = run(tmp_path, "--device", "cpu", "--quick")
    assert status == 0
    assert "- step-bf16: left out: not enough memory" in output
    assert given_back == [0, 1]


def test_a_check_that_dies_says_so(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "gpu_check.py").write_text("raise SystemExit(7)")
    monkeypatch.setattr(gpu_pieces, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="ended with status 7 and without its last line"):
        gpu_pieces.check(gpu_pieces.Lab("cpu", True, tmp_path, None, None, 0.0))


def test_peers_get_plain_views_and_are_held_against_one_group(tmp_path, monkeypatch):
    """Channels-last views would make theirs convert all weights in every step; theirs has no groups."""
    seen = {}

    def step_of(name, groups):
        return lambda views: seen.setdefault(name, set()).add(
            (groups, all(one.is_contiguous(memory_format=torch.channels_last) for one in views)))

    monkeypatch.setattr(gpu_pieces, "our_step", lambda config, compute: step_of("ours", config.bn_groups))
    monkeypatch.setattr(gpu_pieces, "bare_step", lambda config, compute: step_of("bare", config.bn_groups))
    monkeypatch.setattr(gpu_pieces, "lightly_step", lambda config, compute, autocast: step_of("theirs", 1))
    rows = gpu_pieces.step_speed(gpu_pieces.Lab("cpu", True, tmp_path, None, None, 0.0), "bf16")
    assert seen == {"ours": {(2, True), (1, True)}, "bare": {(2, True)}, "theirs": {(1, False)}}
    aims = [one["what"] for one in rows if one["expected"] == "1.2"]
    assert aims == ["step of R50 at 224, bf16: ours with one BatchNorm group, against lightly's with autocast"]


def test_a_peer_that_comes_later_is_measured_then(tmp_path, monkeypatch):
    asked, figures = [], {"step-bf16": None, "search": 1.0}

    def piece(name):
        return lambda lab: asked.append(name) or [gpu_pieces.row(name, figures[name], "images/s")]

    monkeypatch.setattr(gpu, "PIECES", {name: piece(name) for name in figures})
    monkeypatch.setattr(gpu_pieces, "find_spec", lambda name: None)
    arguments = (tmp_path, "--device", "cpu", "--quick")
    assert run(*arguments)[0] == run(*arguments)[0] == 0
    assert asked == ["step-bf16", "search"]
    figures["step-bf16"] = 7.0
    status, output = run(*arguments, "--official", tmp_path)
    assert (status, "step-bf16: again, as there is now: official" in output) == (0, True)
    assert run(*arguments, "--official", tmp_path)[0] == 0
    assert asked == ["step-bf16", "search", "step-bf16"]


def test_too_little_memory_for_a_peer_leaves_that_one_out(tmp_path, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    ours = lambda config, compute: lambda views: None  # noqa: E731
    monkeypatch.setattr(gpu_pieces, "our_step", ours)
    monkeypatch.setattr(gpu_pieces, "bare_step", ours)
    monkeypatch.setattr(gpu_pieces, "lightly_step", lambda *arguments: full)  # in its step
    monkeypatch.setattr(gpu_pieces, "authors_step", full)  # when it is made
    rows = gpu_pieces.step_speed(gpu_pieces.Lab("cpu", True, tmp_path, None, "checkout", 0.0), "bf16")
    left_out = {one["what"].partition("against ")[2] for one in rows if one["unit"] == gpu_pieces.NO_MEMORY}
    assert left_out == {"lightly's with autocast", "the authors' code as it is"}
    assert sum(one["figure"] is not None for one in rows) == 3


def test_without_a_gpu_only_the_quick_sizes_run(tmp_path, whole):
    status, output = run(tmp_path, "--device", "cpu")
    assert status == 2
    assert "Add --device cpu --quick" in output


def test_a_command_is_stopped_in_time_and_goes_on_later(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("{}\n" * 5)
    script = ["sh", "-c", f"trap 'exit 143' TERM; touch {tmp_path}/ready; sleep 20 & wait"]
    begun = time.monotonic()
    with pytest.raises(gpu_pieces.OutOfTime, match="5 lines"):
        gpu_pieces.run_until(script, begun + gpu_pieces.SECONDS_TO_SAVE + 3, metrics)
    assert (tmp_path / "ready").exists()
    gpu_pieces.run_until(["true"], time.monotonic() + 60, metrics)
    with pytest.raises(RuntimeError, match="ended with status 1"):
        gpu_pieces.run_until(["false"], time.monotonic() + 60, metrics)
