"""benchmarks/reproduce/ablations.py: the cells are what pretrain takes, run for real, and told with their errors."""

import json
import subprocess
import time

import click
import pytest
from click.testing import CliRunner

from benchmarks.reproduce import ablations, tables
from benchmarks.reproduce.cells import CELLS, CLAIMS, STUDIES
from benchmarks.reproduce.queue_of_work import Stopped, Work, run_all
from benchmarks.reproduce.statistics_of_seeds import mean_of, paired, verdict
from mocoembed.cli.main import cli
from mocoembed.cli.options import given
from mocoembed.config import PretrainConfig
from mocoembed.files import write_json


def parsed(name, options):
    """{parameter: value} of a command line of `mocoembed NAME`, which must be right."""
    parent = click.Context(cli, help_option_names=["-h", "--help"])  # as main has it: commands keep what they see first
    return cli.get_command(parent, name).make_context(name, list(options), parent=parent).params


def config_of(options):
    """What `mocoembed pretrain images` makes of them."""
    values = parsed("pretrain", ["images", *options])
    return PretrainConfig.of(values.pop("recipe"), values.pop("images"), **given(values))


def run(*arguments):
    result = CliRunner().invoke(ablations.main, [str(one) for one in arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("cell", CELLS)
def test_pretrain_takes_every_cell(cell):
    config = config_of(ablations.options_of(cell, 2, quick=False))
    assert (config.seed, config.epochs, config.limit) == (2, CELLS[cell].epochs, 10_000)
    if cell.startswith("end-to-end"):
        assert config.batch_size - 1 == CELLS[cell].place
    elif CELLS[cell].line in ("queue", "memory bank"):
        assert config.queue_size == CELLS[cell].place
    assert config.batch_size // config.bn_groups in (8, 16, 32, 128)
    assert config_of(ablations.options_of(cell, 2, quick=True)).limit == 80


def test_every_cell_has_a_study_and_every_claim_cells_of_its_study():
    assert set(CELLS) == {name for names in STUDIES.values() for name in names}
    for claim in CLAIMS:
        assert {claim.one, claim.other} <= set(STUDIES[claim.study]), claim.text


def test_v1_and_v2_differ_in_what_the_papers_say():
    v1, v2 = (config_of(ablations.options_of(name, 0, False)) for name in ("v1", "v2"))
    differing = {name for name in vars(v1) if getattr(v1, name) != getattr(v2, name)}
    assert differing == {"head", "jitter", "jitter_probability", "grey_first", "blur_probability", "schedule",
                         "temperature"}
    views = config_of(ablations.options_of("v1-views", 0, False))
    assert {name for name in vars(v1) if getattr(v1, name) != getattr(views, name)} == {
        "jitter", "jitter_probability", "grey_first", "blur_probability"}


def test_two_cells_for_real(tmp_path, images, monkeypatch):
    only = ("--only", "queue-4", "--only", "two-heads")
    arguments = (images, images, "--quick", *only, "--seed", 1, "--output", tmp_path)
    status, output = run(*arguments)
    assert status == 0, output
    for name in ("queue-4-seed1", "two-heads-seed1"):
        result = json.loads((tmp_path / "cells" / f"{name}.json").read_text())
        assert (result["steps"], result["knn_images"], result["images"]) == (2, 24, 24)
        assert 0 <= result["linear_top1"] <= 100
        assert len((tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()) >= 2
    assert "**Tiny runs" in output
    assert "| `two-heads` | end-to-end, one backbone and two heads |" in output
    assert not any((tmp_path / "work").iterdir())
    monkeypatch.setattr(ablations, "run_cell", lambda *_: 1 / 0)
    assert run(*arguments)[0] == 0  # nothing is run again
    assert run(*arguments, "--only", "bank-4")[0] == 1
    kept = tmp_path / "cells" / "queue-4-seed1.json"
    result = json.loads(kept.read_text())
    assert result["processor"] not in ("", "x86_64")
    write_json(kept, {**result, "images_digest": "another"})
    status, output = run(*arguments)
    assert (status, "was made with other images" in output) == (2, True)
    write_json(kept, result)
    status, output = run(*arguments[:2], *arguments[3:])
    assert (status, "was made with other options" in output) == (2, True)


def test_intervals_pairs_and_verdicts():
    assert mean_of([1.0, 2.0, 3.0]).shown(3) == "2.000 ± 2.484 (n 3)"  # 4.303 / sqrt(3)
    assert mean_of([5.0]).shown() == "5.0 (n 1)"
    difference = paired({0: 36.0, 1: 37.0, 2: 36.5, 3: 1.0}, {0: 30.0, 1: 30.5, 2: 31.0})
    assert difference.shown() == "6.0 ± 1.2 (n 3)"
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert [verdict(difference, above) for above in (4.0, 5.5, 8.0)] == ["shows", "cannot be told", "does not show"]
    assert verdict(mean_of([5.0]), 0.0) == "cannot be told"  # one seed shows nothing


def made_up(output, cell, seed, knn):
    write_json(output / "cells" / f"{cell}-seed{seed}.json", {
        "cell": cell, "seed": seed, "quick": False, "knn_top1": knn, "linear_top1": 10 + 1.5 * knn, "loss": 3.0,
        "chance": 4.2, "pretext_top1": 30.0, "images_per_second": 1000.0})


def test_report_of_made_up_results(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "cells").mkdir()
    for seed in range(3):
        for cell, knn in (("queue-4", 30.4), ("queue-64", 36.4), ("bank-64", 27.8), ("m-0-60", 25.0)):
            made_up(tmp_path, cell, seed, knn + 0.1 * seed * (2 if cell == "queue-64" else 1))
    text = tables.write_report(tmp_path)
    assert "| `queue-64` | queue, K 64 | 36.6 ± 0.5 (n 3) |" in text
    assert "K 64 is more than 3 points above K 4 | shows | 6.1 ± 0.2 (n 3) | shows |" in text
    assert "Over 12 encoders: correlation 1.000." in text
    assert {path.name for path in tmp_path.glob("*.png")} == {"a-dictionary.png", "b-momentum.png", "f-linear.png"}
    assert (tmp_path / "ablations.md").read_text() == text


def test_work_is_stopped_in_time_and_a_failure_does_not_end_the_rest(tmp_path):
    work, log = Work(time.monotonic() + 6), subprocess.DEVNULL
    script = f"trap 'touch {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/begun; sleep 20 & wait"
    told = []
    cells = [("fails", lambda: work.run(["false"], log)), ("works", lambda: work.run(["echo", "so"], log)),
             ("long", lambda: work.run(["sh", "-c", script], log)), ("later", lambda: work.run(["true"], log))]
    assert work.run(["sh", "-c", "echo $OMP_NUM_THREADS"], log) == "1\n"
    left, failed = run_all(work, cells, 1, told.append)
    assert (left, failed) == (["long", "later"], {"fails": "RuntimeError: false ended with status 1"})
    assert (tmp_path / "saved").exists()
    with pytest.raises(Stopped):
        work.run(["true"], log)
