"""The code for GPUs, run on a pretended one: its numbers are the CPU's, and nothing waits that need not.

Each part runs in a process of its own, this file as a script.
"""

import dataclasses
import json
import pathlib
import sys

import pytest
from own_process import ROOT, found_by

FP16_FROM_FLOAT64 = 0.15  # losses of about 3 after two steps
UPLOADS = {"queue": 7, "masked": 7, "end-to-end": 7, "memory-bank": 6, "symmetric": 13}


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return found_by(__file__, "steps", tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return found_by(__file__, "whole", tmp_path_factory.mktemp("whole"))


def test_losses_are_the_cpus(steps):
    for name, found in steps["steps"].items():
        within = FP16_FROM_FLOAT64 if name.endswith("fp16") else 0
        for one, other in zip(found["gpu"], found["cpu"], strict=True):
            assert abs(one - other) <= within, name


def test_a_step_waits_for_its_numbers_alone(steps):
    """In fp16 the scaler also asks whether a gradient is infinite."""
    for name, found in steps["steps"].items():
        gathered, *others = found["waits"]
        assert gathered == "Event.synchronize", name
        assert len(others) == name.endswith("fp16"), (name, others)
        assert all(one.startswith("_local_scalar_dense at step.py") for one in others), (name, others)


def test_a_step_has_few_uploads(steps):
    """The crops, what is done to them and the images' rows; the order of the keys twice."""
    assert {name.partition(" ")[0]: len(found["uploads"]) for name, found in steps["steps"].items()} == UPLOADS


def test_a_whole_pretraining_stopped_and_resumed_is_the_cpus(whole):
    assert whole["gpu"]["status"] == 143
    ranks = [[line.pop("rankme") for line in whole[device]["lines"] if "rankme" in line] for device in ("gpu", "cpu")]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-12)  # LAPACK's last bit depends on where the matrix lies
    assert whole["gpu"]["lines"] == whole["cpu"]["lines"]
    assert any("knn_top1" in line for line in whole["gpu"]["lines"])


def test_embeddings_and_their_accuracy_are_the_cpus(whole):
    assert whole["gpu"]["vectors"] == whole["cpu"]["vectors"]
    assert whole["gpu"]["accuracy"] == whole["cpu"]["accuracy"]


def test_the_pretended_gpu_finds_faults(steps):
    assert steps["faults"] == {
        "no index": "Expected a torch.device with a specified index or an integer, but got:cuda",
        "both devices": "add: tensors on cuda:0 and on cpu, [(6,)]",
        "waits": ["index", "index", "_local_scalar_dense", "isin", "upload",
                  "upload from memory that is not pinned", "download"],
        "early": [-64] * 6, "in time": list(range(6)), "by to_host": list(range(6))}


# ------------------------------------------------------------------------------------- in a process of its own


def run_steps(folder: pathlib.Path) -> dict:
    """Two steps of every dictionary on both devices: losses, and the waits and uploads of the last one."""
    found = {}
    for variant, precisions in (("queue", ("fp64", "bf16", "fp16")), ("masked", ("fp64",)), ("symmetric", ("fp64",)),
                                ("end-to-end", ("fp64", "fp16")), ("memory-bank", ("fp64", "bf16", "fp16"))):
        changes = {"masked": {"mask_same_image": True}, **gpu_checks.VARIANTS}[variant]
        for precision in precisions:
            lab = gpu_checks.Lab("auto", folder, True)
            config = gpu_checks.tiny(lab, {**changes, "precision": precision})
            with Pretended() as gpu:
                losses = stepped(config, gpu)
                waits, uploads = list(gpu.waits), list(gpu.uploads)
            exact = dataclasses.replace(config, precision="fp64") if precision == "fp16" else config
            found[f"{variant} {precision}"] = {"gpu": losses, "cpu": stepped(exact, None), "waits": waits,
                                               "uploads": uploads}
    return found


def stepped(config, gpu) -> list[float]:
    """Losses of two steps; `gpu` has the waits and uploads of the last one."""
    compute = Compute.of("auto" if gpu else "cpu", config.precision)
    compute.tune()
    training, losses = set_up(config, compute, gpu_checks.IMAGES), []
    for step in range(2):
        batch = pin_memory(gpu_checks.made_up_batch(config, step)) if gpu else gpu_checks.made_up_batch(config, step)
        if gpu:
            gpu.waits.clear()
            gpu.uploads.clear()
        numbers = training_step(training, make_views(batch, training), (), lambda numbers: None)
        losses.append(float(numbers[0, 0]))
    return losses


def run_whole(folder: pathlib.Path) -> dict:
    """A pretraining that is stopped and resumed, an embedding and its kNN accuracy, on both devices."""
    write_collection(folder / "images", gpu_checks.IMAGES)
    found = {}
    for device in ("gpu", "cpu"):
        with Pretended() if device == "gpu" else contextlib.nullcontext():
            found[device] = used(folder, "auto" if device == "gpu" else "cpu")
    return found


def used(folder: pathlib.Path, device: str) -> dict:
    """What all commands give with `--device`."""
    images = str(folder / "images")
    config = gpu_checks.tiny(gpu_checks.Lab(device, folder, True), {
        "precision": "fp64", "cache": "ram", "val": images, "workers": 1, "workspace": str(folder / device)})
    status = None
    try:
        pretrain(config, Watcher(step=lambda report, steps: report.step == 5 and os.kill(os.getpid(), signal.SIGTERM)))
    except Interrupted as error:
        status = error.status
    result = pretrain(dataclasses.replace(config, cache="none"))
    timing = ("images_per_second", "waiting", "waiting_mean")
    lines = [{name: value for name, value in json.loads(line).items() if name not in timing}
             for line in (result.run / "metrics.jsonl").read_text().splitlines()]
    embedded = embed_images(EmbedConfig(collections=(images,), workspace=config.workspace, device=device,
                                        precision="fp64", batch_size=24, workers=1))
    with EmbeddingFile(embedded.path) as file:
        vectors = file.embeddings(slice(0, len(file)))
    accuracy = knn_accuracy(KnnConfig(workspace=config.workspace, device=device))
    return {"status": status, "lines": lines, "vectors": vectors.tolist(),
            "accuracy": [one.top1 for one in accuracy.scores]}


def run_faults() -> dict:
    """What the pretended GPU says of a fault of each kind."""
    found = {}
    with Pretended() as gpu:
        x = torch.arange(6).to(Compute.of("cuda", "fp32").device)
        for name, fault in (("no index", lambda: Compute(torch.device("cuda"), "fp32").tune()),
                            ("both devices", lambda: x + torch.ones(6))):
            try:
                fault()
            except (ValueError, RuntimeError) as error:
                found[name] = str(error)
        host, event = torch.empty(6, dtype=torch.int64, pin_memory=True), torch.cuda.Event()
        host.copy_(x, non_blocking=True)
        found["early"] = host.tolist()
        event.record(torch.cuda.current_stream(x.device))
        event.synchronize()
        found["in time"], found["by to_host"] = host.tolist(), to_host(x)().tolist()
        gpu.waits.clear()
        x[x > 2], x[torch.tensor([1])], x.sum().item(), torch.isin(x, x), torch.ones(3).to(x.device)
        torch.ones(3).to(x.device, non_blocking=True), x.cpu()
        found["waits"] = [one.partition(" at ")[0] for one in gpu.waits]
    return found


if __name__ == "__main__":
    import contextlib
    import os
    import signal

    import torch
    from torch.utils.data._utils.pin_memory import pin_memory

    sys.path += [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
    import gpu_checks
    from pretended_cuda import Pretended

    from mocoembed.config import EmbedConfig, KnnConfig
    from mocoembed.data.sample import write_collection
    from mocoembed.embed.extract import embed_images
    from mocoembed.embed.store import EmbeddingFile
    from mocoembed.errors import Interrupted
    from mocoembed.evaluate.knn.accuracy import knn_accuracy
    from mocoembed.model.precision import Compute, to_host
    from mocoembed.train.loop import pretrain
    from mocoembed.train.monitor import Watcher
    from mocoembed.train.run import set_up
    from mocoembed.train.step import make_views, training_step

    torch.set_num_threads(1)
    place = pathlib.Path(sys.argv[2])
    print(json.dumps(run_whole(place) if sys.argv[1] == "whole" else
                     {"steps": run_steps(place), "faults": run_faults()}))
