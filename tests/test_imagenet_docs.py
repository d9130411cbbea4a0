"""docs/imagenet.md: the tool takes every command line, the arithmetic is right, and all of it runs on tiny images."""

import pathlib
import re
import shlex

import pytest
import torch
from test_reproduce_ablations import parsed

from benchmarks.reproduce.imagenet_shaped import write_imagenet_shaped
from mocoembed.cli.options import given
from mocoembed.config import PretrainConfig
from mocoembed.model.cost import multiplications
from mocoembed.model.encoder import Encoder, count_parameters
from mocoembed.train.run import encoder_spec, settled

ROOT = pathlib.Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")
PUBLISHED = "moco-v2-800ep"
TINY = ["--epochs", "1", "--limit", "64", "--batch-size", "64", "--queue-size", "128", "--width", "0.125",
        "--image-size", "32", "--precision", "fp32", "--workers", "1", "--device", "cpu", "--processes", "1",
        "--val-every", "99"]


def command_lines():
    """The lines of all code blocks, split as by a shell."""
    blocks = re.findall(r"```text\n(.*?)```", TEXT, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def of_mocoembed(line):
    """What a line gives to mocoembed, or `None` when it is another program's."""
    if line[0] == "mocoembed":
        return line[1:]
    if "docs/scripts/slurm.sh" in line:
        assert line[0] == "sbatch"
        return ["pretrain", *line[line.index("docs/scripts/slurm.sh") + 1:]]
    if line[0] == "docs/scripts/torchrun.sh":
        assert (line[1], line[2]) == ("4", "node1")
        return ["pretrain", *line[3:]]
    return None


COMMANDS = [found for line in command_lines() if (found := of_mocoembed(line)) is not None]
PRETRAININGS = {options[options.index("--run") + 1]: options for options in COMMANDS if options[0] == "pretrain"}


def config_of(options):
    """The config of a pretraining's command line."""
    values = parsed("pretrain", options[1:])
    return PretrainConfig.of(values.pop("recipe"), values.pop("images"), **given(values))


def test_all_lines_are_known():
    others = {line[0] for line in command_lines() if of_mocoembed(line) is None}
    assert others == {"tail", "python"}
    assert (ROOT / "docs/scripts/slurm.sh").exists()
    assert (ROOT / "docs/scripts/torchrun.sh").exists()
    assert len(COMMANDS) == 23


@pytest.mark.parametrize("options", COMMANDS, ids=lambda options: " ".join(options)[:90])
def test_the_tool_takes_every_line(options):
    assert parsed(options[0], options[1:])
    if options[0] == "pretrain":
        assert config_of(options).epochs in (1, 200, 800)


def test_what_the_runs_are():
    published = {"v1-r50": 24, "v1-rx50": 46, "v1-r50w2x": 94, "v1-r50w4x": 375, "v2-r50": 24, "v2-r50-800": 24}
    against_r50 = {"v1-rx50": 2.07, "v1-r50w2x": 3.94, "v1-r50w4x": 15.65}
    r50 = multiplications(encoder_spec(config_of(PRETRAININGS["v1-r50"])), 224)
    for run, millions in published.items():
        config = config_of(PRETRAININGS[run])
        with torch.device("meta"):
            encoder = Encoder(encoder_spec(config))
        assert round(count_parameters(encoder.backbone) / 1e6) == millions, run
        assert (config.batch_size, config.bn_groups, config.queue_size) == (256, 8, 65536)
        if run in against_r50:
            assert round(multiplications(encoder_spec(config), 224) / r50, 2) == against_r50[run]
    for run, options in PRETRAININGS.items():
        if options[1] == "imagenet/train" and run not in published:
            config, _ = settled(config_of(options), 1_281_167, processes=32)
            assert config.bn_groups == 32
            assert config.batch_size // 32 == (8 if run.endswith("256") else 32)
            assert config.lr == pytest.approx(0.03 * config.batch_size / 256)


def test_the_arithmetic():
    images = 200 * 1_281_167
    authors = images / (53 * 3600)
    share = authors / (2855 * 0.75)
    assert (round(authors), round(share, 2)) == (1343, 0.63)
    for classifier, rate, hours, gpu_hours, load in (
            (7248, "3,409", "20.9", "167", "3,409 images/s take 9 cores"),
            (16621, "7,818", "9.1", "73", "and 7,818 take 20;")):
        found = classifier * 0.75 * share
        assert (f"{found:,.0f}", f"{images / found / 3600:.1f}") == (rate, hours)
        assert f"| {rate} (estimate) | {hours} | {gpu_hours} | {round(2 * 8 * images / found / 3600)} |" in TEXT
        assert load in TEXT
        assert load.strip(";").replace(" cores", "").endswith(f" {found / 390:.0f}")
    hours = {name: images / (rate * 0.75 * share) / 3600 for name, rate in (("TF32", 7248), ("bf16", 16621))}
    for run, times in (("`v1-r50`, `v2-r50`", 1), ("`v2-r50-800`", 4), ("`v1-rx50`", 2.07), ("`v1-r50w2x`", 3.94),
                       ("`v1-r50w4x`", 15.65)):
        (line,) = (one for one in TEXT.splitlines() if one.startswith(f"| {run} |") and one.count("|") == 5)
        _, _, _, tf32, bf16, _ = (cell.strip() for cell in line.split("|"))
        assert (int(tf32.partition(",")[0]), int(bf16)) == tuple(round(times * one) for one in hours.values()), run
    assert "10.5 GB" in TEXT
    assert round(1_281_167 * 2048 * 4 / 1e9, 1) == 10.5


@pytest.fixture(scope="module")
def shaped(tmp_path_factory):
    """A folder shaped like ImageNet."""
    folder = tmp_path_factory.mktemp("imagenet")
    write_imagenet_shaped(folder / "imagenet")
    assert len(list((folder / "imagenet" / "train").iterdir())) == 1000
    return folder


def ran(run_cli, shaped, monkeypatch, options, *more):
    monkeypatch.chdir(shaped)
    options = [one.replace("imagenet-shaped", "imagenet") for one in options]
    status, output, errors = run_cli(*options, *more)
    assert status == 0, errors
    return output + errors


def test_a_pretraining_its_check_and_the_published_protocol_run(run_cli, shaped, monkeypatch):
    """The lines of the page one after another; for the published weights, those just pretrained."""
    text = ran(run_cli, shaped, monkeypatch, PRETRAININGS["v2-r50"], *TINY)
    assert "64 images, 1 step per epoch" in text
    for options in COMMANDS:
        if options[0] == "pretrain":
            continue
        if PUBLISHED in options:
            place = options.index("--encoder")
            options = [*options[:place], *options[place + 2:]]
        more = [] if options[0] == "export" else ["--device", "cpu"]
        if options[0] == "linear":
            more += ["--epochs", "1", "--labels", "1-per-class", "--seeds", "1", "--workers", "1"]
        text = ran(run_cli, shaped, monkeypatch, options, *more, *(["--workers", "1"] if options[0] == "embed" else []))
    assert (shaped / "train.h5").exists()
    assert re.search(r"\b20\b", text)  # k


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in PRETRAININGS if run != "v2-r50"])
def test_every_other_pretraining_runs(run, run_cli, shaped, monkeypatch):
    ran(run_cli, shaped, monkeypatch, PRETRAININGS[run], *TINY)
