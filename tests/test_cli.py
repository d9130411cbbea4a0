"""The command line as a user types it: the five commands in a row, and wrong input to every one of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest
from torchless import WITHOUT_TORCH

from mocoembed.cli.info import _flat
from mocoembed.cli.main import _unexpected, cli, main

TINY = ["--recipe", "small", "--width", "0.125", "--stem", "3x3s2", "--dim", "16", "--queue-size", "20", "--batch-size",
        "8", "--bn-groups", "2", "--image-size", "32", "--epochs", "2", "--workers", "0", "--device", "cpu"]


def snapshot(folder):
    """Every file and folder below a folder, with the files' content."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def test_images_to_hits_without_any_path(tmp_path, images, run_cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run_cli("pretrain", images, *TINY, "--val", images)
    assert status == 0
    assert "encoders" in out
    assert "ln(K+1) = 3.045" in err
    assert "kNN accuracy" in err
    status, out, _ = run_cli("embed", images, "--json")
    assert status == 0
    assert json.loads(out)["embedded"] == 24
    assert run_cli("index")[0] == 0
    query = images / "red" / "001.jpg"
    status, out, _ = run_cli("search", query, "-k", "3", "--format", "json", "--sheet", "hits.png")
    (found,) = json.loads(out)
    assert set(found) == {"query", "hits"}
    assert [hit["rank"] for hit in found["hits"]] == [1, 2, 3]
    first = found["hits"][0]
    assert set(first) == {"rank", "score", "path", "label", "row", "id"}
    assert first["score"] == pytest.approx(1, abs=1e-5)
    assert os.path.samefile(first["path"], query)
    assert first["label"] == "red"
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = run_cli("knn", "--json", "-k", "1,5")
    result = json.loads(out)
    assert {"preset", "features", "bank", "queries", "results", "per_class", "encoder"} <= set(result)
    assert [one["k"] for one in result["results"]] == [1, 5]
    for path in ("embeddings.h5", "embeddings.faiss", "encoder.safetensors"):
        status, out, _ = run_cli("info", tmp_path / "mocoembed-workspace" / path, "--json", "--verify")
        assert status == 0
        assert json.loads(out)["verified"] is True
    status, _, err = run_cli("info", tmp_path / "nothing.h5", "--verify")
    assert (status, "does not exist" in err) == (2, True)
    (run,) = (tmp_path / "mocoembed-workspace" / "runs").iterdir()
    assert json.loads(run_cli("info", run, "--json")[1])["step"] == 6
    assert run_cli("export")[0] == 0


@pytest.fixture
def bad(tmp_path, fresh_workspace):
    """A folder of wrong things to give: empty/, text/ (a text file with an image's name), text.txt."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "not-a-image.jpg").write_text("hello")
    (tmp_path / "text.txt").write_text("hello")
    return tmp_path


# (arguments, with {bad}, {ws} and {images} filled in; exit status; a part of the message)
WRONG_CALLS = [
    ("pretrain {bad}/nowhere", 2, "does not exist"),
    ("pretrain {bad}/text.txt", 1, "1 image does not fill a batch of 2. Pretraining takes 2 or more"),
    ("pretrain {ws}/embeddings.h5", 2, "is a file that holds no images. Give a folder, a list"),
    ("embed {bad}/shard-{{0..3}}.tar", 2, "shard-0.tar' does not exist or is not a file (4 of 4"),
    ("pretrain {bad}/empty", 1, "holds no images"),
    ("pretrain {bad}/text --batch-size 2 --bn-groups 1", 1, "1 image does not fill a batch of 2"),
    ("pretrain {images} --recipe moco-v2", 1, "24 images do not fill a batch of 256. Give --batch-size 24."),
    ("pretrain {images} --recipe moco-v2 --bn-groups 16", 1, "a batch of 256. Give --batch-size 24 --bn-groups 1."),
    ("pretrain {images} --recipe moco-v9", 2, "must be one of auto, moco-v1, moco-v2, moco-v2-plus, lightly"),
    ("pretrain {images} --epochs many", 2, "many"),
    ("pretrain {images} --epochs 0", 2, "--epochs 0: must be 1 or more"),
    ("pretrain {images} --arch resnet9 --batch-size 16", 2, "--arch resnet9: must be timm:NAME or one of resnet18"),
    ("pretrain {images} --device tpu", 2, "--device tpu"),
    ("pretrain {images} --device cuda:99", 2, "--device cuda:99: not on this machine"),
    ("pretrain {images} --jitter 1,2", 2, "'1,2' is not 4 numbers separated by commas"),
    ("pretrain {images} --width 0.3 --batch-size 16", 2, "--width 0.3"),
    ("pretrain {images} --batch-size 16 --val {bad}/nowhere", 2, "The collection of --val"),
    ("pretrain {images} --workspace {bad}/text.txt --batch-size 16", 1, "text.txt"),
    ("pretrain {images} --seed 99999999999999999999999", 2, "--seed"),
    ("pretrain {images} --width inf --batch-size 16", 2, "--width inf"),
    ("pretrain {images} --std 0,0,0", 2, "--std 0.0,0.0,0.0"),
    ("pretrain {images} --queue-size 100000000000000 --batch-size 16", 1, "--queue-size"),
    ("pretrain", 2, "Missing argument"),
    ("export {bad}/nowhere.pt", 2, "does not exist"),
    ("export {bad}/text.txt", 1, "not a checkpoint"),
    ("export {ws}/embeddings.h5", 1, "not a checkpoint"),
    ("export --format keras", 2, "must be one of encoder, torchvision, detectron2, onnx"),
    ("export --workspace {bad}", 2, "No run with a checkpoint"),
    ("embed {bad}/nowhere", 2, "does not exist"),
    ("embed {bad}/empty", 1, "holds no images"),
    ("embed {images} --output {bad}/text.txt --fresh", 1, "not an embeddings file"),
    ("index {ws}/embeddings.h5 --output {bad}/text.txt", 2, "not a mocoembed index"),
    ("embed {bad}/text --output {bad}/text.h5", 1, "None of the 1 images can be read"),
    ("embed {images} --encoder {bad}/nowhere", 2, "Make one with: mocoembed pretrain"),
    ("embed {images} --encoder {ws}/embeddings.h5", 1, "is not a checkpoint"),
    ("embed {images} --encoder moco-v9", 2, "moco-v1-200ep, moco-v2-200ep, moco-v2-800ep"),
    ("export {ws}/encoder.safetensors --image-size 64", 2, "are for weights of another library"),
    ("export --std 1,2", 2, "--std 1.0,2.0: must be three numbers above 0"),
    ("embed {images} --features head", 2, "--features head: must be one of backbone, projection"),
    ("embed {images} --features projection", 1, "--fresh"),
    ("embed {bad}/text", 1, "another collection"),
    ("index {bad}/nowhere.h5", 2, "Make one with: mocoembed embed"),
    ("index {bad}/text.txt", 1, "not an embeddings file"),
    ("index {ws}/encoder.safetensors", 1, "not an embeddings file"),
    ("index --type hsnw", 2, "--type hsnw: must be one of auto, flat"),
    ("search {images}/red/001.jpg --index {ws}/embeddings.h5", 1, "embeddings"),
    ("search {images}/red/001.jpg --index {bad}/nowhere", 2, "Make one with: mocoembed index"),
    ("search {images}/red/001.jpg -k 0", 2, "must be 1 or more"),
    ("search", 2, "IMAGE"),
    ("knn {bad}/nowhere.h5", 2, "does not exist"),
    ("knn {bad}/text.txt", 1, "not an embeddings file"),
    ("knn --preset moco", 1, "projection"),
    ("knn --preset swav", 2, "must be one of moco, lightly, dino"),
    ("knn -k none", 2, "is not one or more numbers"),
    ("info {bad}/nowhere", 2, "does not exist"),
    ("info {bad}/text.txt", 1, "not a mocoembed file"),
    ("info {bad}/empty", 1, "holds no checkpoint"),
    ("demo --images 3", 2, "--images 3: must be 160 or more"),
    ("nonsense", 2, "No such command"),
]


@pytest.mark.parametrize(("call", "message"), [
    ("knn --tune", "--tune: without QUERIES"), ("linear --folds 1", "--folds 1"), ("retrieval --at 0", "--at 0"),
    ("rankme --images 1", "--images 1"), ("finetune photos --lr 0", "--lr 0"),
    ("linear photos --protocol moco --lr 0", "--lr 0")])
def test_wrong_options_of_evaluations_are_told_without_waiting_for_torch(call, message):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *call.split()], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize(("call", "status", "message"), WRONG_CALLS)
def test_wrong_input_says_what_is_wrong_and_changes_nothing(call, status, message, bad, fresh_workspace, images,
                                                            run_cli, monkeypatch):
    monkeypatch.chdir(bad)
    arguments = [part.format(bad=bad, ws=fresh_workspace, images=images) for part in call.split()]
    monkeypatch.setenv("MOCOEMBED_WORKSPACE", str(fresh_workspace))
    before = snapshot(bad)
    got, out, err = run_cli(*arguments)
    assert (got, out) == (status, "")
    lines = [line for line in err.splitlines()
             if not line.startswith(("Usage:", "Try ")) and line.strip()]
    assert message in " ".join(lines)
    assert 1 <= len(lines) <= 2
    assert "Traceback" not in err
    assert snapshot(bad) == before


def test_search_for_what_is_no_image(bad, fresh_workspace, run_cli):
    assert run_cli("index", "--workspace", fresh_workspace)[0] == 0
    for name, status in [("text/not-a-image.jpg", 1), ("nowhere.jpg", 2), ("empty", 1)]:
        got, out, err = run_cli("search", bad / name, "--workspace", fresh_workspace)
        assert (got, out) == (status, ""), err
        assert name in err
        assert "Traceback" not in err


def test_a_traceback_only_with_debug(tmp_path):
    for arguments, expected in [(["info", "nowhere"], False), (["--debug", "info", "nowhere"], True)]:
        done = subprocess.run([sys.executable, "-m", "mocoembed", *arguments], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, check=False)
        assert done.returncode != 0
        assert ("Traceback" in done.stderr) is expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_same_command_goes_on(tmp_path, images, number, status):
    command = [sys.executable, "-m", "mocoembed", "pretrain", str(images), *TINY, "--epochs", "400", "--workers", "1",
               "--workspace", str(tmp_path)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    for line in child.stderr:
        if line.startswith("epoch ") and not line.startswith("epoch 1/"):
            os.killpg(child.pid, number)  # loading processes too, as a terminal and SLURM do
            break
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) == status
    assert "Run the same command again to continue." in rest
    assert "Traceback" not in rest
    (run,) = (tmp_path / "runs").iterdir()
    stopped_at = json.loads((run / "checkpoint.json").read_text())["checkpoints"][0]["step"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines = []
    for line in child.stderr:
        lines.append(line)
        if line.startswith("epoch "):
            os.killpg(child.pid, number)
            break
    child.stderr.read()
    child.stderr.close()
    assert child.wait(timeout=60) == status
    assert any(f"after step {stopped_at} " in line for line in lines)


@pytest.mark.parametrize(("said", "is_memory"), [
    ("libtorch_cpu.so: failed to map segment from shared object", True),
    ("libtorch_cpu.so: failed to map segment from shared object: Cannot allocate memory", True),
    ("x.so: failed to map segment from shared object: Operation not permitted", False)])
def test_libraries_that_do_not_fit_into_the_memory_are_no_bug(said, is_memory):
    assert ("ulimit -v" in _unexpected(ImportError(said))) is is_memory
    assert ("This is a bug" in _unexpected(ImportError(said))) is not is_memory


def test_info_has_a_line_for_each_failed_image_without_the_names_of_classes():
    failed = [{"path": f"{number}.jpg", "error": "OSError", "reason": "No such file"} for number in range(13)]
    lines = list(_flat({"failed": failed[:1]}))
    assert lines == [("failed", "1"), ("failed.0", "0.jpg: No such file")]
    lines = list(_flat({"failed": failed}))
    assert lines[0] == ("failed", "13, the first 12:")
    assert lines[12:] == [("failed.11", "11.jpg: No such file")]
    assert list(_flat({"failed": []})) == [("failed", "-")]


def test_a_pretraining_of_one_step_says_so(tmp_path, images, run_cli):
    status, out, _ = run_cli("pretrain", images, *TINY, "--epochs", "1", "--batch-size", "24", "--workspace", tmp_path)
    assert status == 0
    assert ": 1 step in " in out


def test_output_into_a_closed_pipe_is_no_traceback(fresh_workspace, tmp_path):
    script = f"{sys.executable} -m mocoembed info {fresh_workspace}/embeddings.h5 | true"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("interrupted", [True, False])
def test_an_interrupt_that_a_library_took_for_an_error(monkeypatch, capsys, interrupted):
    def read(*arguments, **settings):
        if interrupted:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise ValueError("could not determine the shape")

    monkeypatch.setattr(cli, "main", read)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in a job of the background
    try:
        with pytest.raises(SystemExit) as leaving:
            main([])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert leaving.value.code == (130 if interrupted else 1)
    said = capsys.readouterr().err
    assert (said == "mocoembed: stopped\n") is interrupted
    assert ("This is a bug" in said) is not interrupted
