"""The pieces of `gpu.py`: each takes a `Lab` and gives rows of the table; `LeftOut` says why there is nothing to give.

A row: what, the figure measured, its unit, the figure published or aimed at, and where that comes from.
"""

import dataclasses
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import torch

from benchmarks.index_scale import mixture, write
from benchmarks.pretrain_speed import bare_step, our_step, timed
from benchmarks.reproduce.peers import authors_step, lightly_step
from mocoembed.config import PretrainConfig
from mocoembed.cores import cores
from mocoembed.data.images import scan
from mocoembed.data.loader import Places, view_batches
from mocoembed.data.sample import write_collection
from mocoembed.embed.store import EmbeddingFile
from mocoembed.model.embedder import Embedder
from mocoembed.model.precision import Compute
from mocoembed.search.faiss_index import gpus
from mocoembed.search.on_gpu import GpuVectors
from mocoembed.train.run import frozen_encoder, set_up

ROOT = pathlib.Path(__file__).parent.parent.parent
QUICK = {"width": 0.125, "batch_size": 16, "bn_groups": 2, "queue_size": 256, "image_size": 32}
QUICK_CIFAR = ["--width", "0.125", "--stem", "3x3s2", "--batch-size", "16", "--bn-groups", "2", "--queue-size", "64",
               "--epochs", "2", "--workers", "1"]
SECONDS_TO_SAVE = 20.0
ONE_GROUP = "ours with one BatchNorm group"
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class LeftOut(Exception):
    """This piece cannot be measured here; the reason."""


class OutOfTime(Exception):
    """The piece is not finished; what it has done is kept, and the next call goes on. How far it is."""


@dataclass(frozen=True)
class Lab:
    """Where and with what the pieces run."""

    device: str
    quick: bool
    output: pathlib.Path
    cifar: str | None
    """Folder with `train` and `test`; `None`: torchvision downloads CIFAR-10."""
    official: str | None
    """Checkout of the authors' code."""
    end: float
    """`time.monotonic()` at which to stop."""

    def means(self) -> list[str]:
        """What peers can be measured with."""
        return [*(["official"] if self.official else []), *(["lightly"] if find_spec("lightly") else [])]

    def config(self, changes: dict) -> PretrainConfig:
        """MoCo v2 on ImageNet, or a tiny network, with these settings changed."""
        return PretrainConfig.of("moco-v2", "none", device=self.device, **{**changes, **(QUICK if self.quick else {})})


NO_MEMORY = "not measured: not enough memory"


def row(what: str, figure: float | None, unit: str, expected: str = "", source: str = "") -> dict:
    """One line of the table; without a figure, `unit` says why there is none."""
    return {"what": what, "figure": figure if figure is None else round(float(figure), 3), "unit": unit,
            "expected": expected, "source": source}


def check(lab: Lab) -> list[dict]:
    """`gpu_check.py`: every code path for GPUs against the CPU's."""
    names = ["--only", "views,groups"] if lab.quick else []
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--no-speed", "--device",
                           lab.device, *(["--quick"] if lab.quick else []), *names], stdout=subprocess.PIPE, text=True)
    try:
        report = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise RuntimeError(f"gpu_check.py ended with status {done.returncode} and without its last line") from None
    if report["failed"]:
        figures = "; ".join(f"{name}: {report['checks'][name]['figure']}" for name in report["failed"])
        raise RuntimeError(f"gpu_check.py failed: {figures}")
    return [row("checks of gpu_check.py that pass", len(report["checks"]), "checks", "all", "gpu_check.py")]


def step_speed(lab: Lab, precision: str) -> list[dict]:
    """Images/s of a step on ready tensors, each contender in turn: ours, the bare encoders, the authors', lightly's.

    The peers normalise over the whole batch, and get views in the layout that a loader of theirs gives. So they are
    held against ours with one BatchNorm group.
    """
    on_cpu = lab.device == "cpu"
    if on_cpu and precision == "fp16":
        raise LeftOut("a CPU has no fp16")
    config = lab.config({"precision": "fp32" if on_cpu else precision})
    compute = Compute.of(lab.device, config.precision)
    compute.tune()
    autocast = None if on_cpu else DTYPES[precision]
    steps = {"ours": our_step(config, compute), "the bare encoders": bare_step(config, compute),
             ONE_GROUP: our_step(dataclasses.replace(config, bn_groups=1), compute)}
    own, missing = list(steps), {}
    peers = {"lightly's with autocast": lambda: lightly_step(config, compute, autocast)}
    if (official := lab.official) is not None:
        peers["the authors' code as it is"] = lambda: authors_step(official, config, compute, None)
        if autocast:
            peers["the authors' code with autocast"] = lambda: authors_step(official, config, compute, autocast)
    else:
        missing["the authors' code"] = "not measured: give --official"
    for name, made in peers.items():
        try:
            steps[name] = made()
        except ImportError:
            missing["lightly's"] = "not measured: pip install lightly"
        except torch.OutOfMemoryError:
            missing[name] = NO_MEMORY
    size = config.image_size
    plain = [torch.randn(config.batch_size, 3, size, size, device=compute.device) for _ in range(2)]
    channels_last = [view.contiguous(memory_format=torch.channels_last) for view in plain]
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(3 if lab.quick else 14):
        for name in [name for name in steps if name not in missing]:
            try:
                seconds = timed(steps[name], channels_last if name in own else plain, compute.device)
            except torch.OutOfMemoryError:
                if name in own:
                    raise
                missing[name] = NO_MEMORY
                continue
            if turn >= (1 if lab.quick else 4):
                rates[name].append(config.batch_size / seconds)
    median = {name: statistics.median(values) for name, values in rates.items() if name not in missing}
    aims = {"the authors' code as it is": "2", "lightly's with autocast": "1.2"}
    what = f"step of R50 at 224, {precision}"
    rows = [row(f"{what}: {name}", median[name], "images/s") for name in ("ours", ONE_GROUP)]
    rows.append(row(f"{what}: ours against the bare encoders", median["ours"] / median["the bare encoders"], "times"))
    rows += [row(f"{what}: {ONE_GROUP}, against {name}", median[ONE_GROUP] / median[name], "times",
                 aims.get(name, ""), "our aim" if name in aims else "") for name in median if name not in own]
    return rows + [row(f"{what}: {ONE_GROUP}, against {name}", None, why) for name, why in missing.items()]


def loading(lab: Lab) -> list[dict]:
    """Two crops of each image, from JPEG files of the size of photographs, by the number of loading processes."""
    from benchmarks.reproduce.photographs import write_photographs

    folder = lab.output / "photographs"
    write_photographs(folder, 32 if lab.quick else 256)
    listing, rows, counts = scan(folder), [], [1, 2, 4, 8, 16, 32, 64]
    for workers in [1] if lab.quick else [count for count in counts if count <= cores()]:
        batch_size = 8 if lab.quick else 64
        config = PretrainConfig.of("moco-v2", "none", batch_size=batch_size, bn_groups=1, epochs=1000)
        done, begun = 0, None
        batches = view_batches(listing, config, Places(len(listing), config, 0), workers, lab.device != "cpu")
        for number, batch in enumerate(batches):
            done += len(batch.rows) if begun else 0
            if number == 4 * workers:  # what was loaded ahead is used up
                begun = time.monotonic()
            if begun and time.monotonic() - begun > (0.5 if lab.quick else 15):
                break
        assert begun is not None  # there are a thousand epochs
        rows.append(row(f"two views of 224 from JPEG files, {workers} loading processes of {cores()} cores",
                        done / (time.monotonic() - begun), "images/s"))
    return rows


def embedding(lab: Lab) -> list[dict]:
    """Our embedder on ready uint8 images against the bare network on ready float ones, in the same arithmetic."""
    rows = []
    for precision in ("fp32",) if lab.device == "cpu" else ("fp16", "bf16", "tf32"):
        config = lab.config({"precision": precision})
        compute = Compute.of(lab.device, precision)
        compute.tune()
        encoder = set_up(config, compute, 1000).method.encoder_q.eval()
        frozen = frozen_encoder(encoder.state_dict(), config, {})
        embedder, n = Embedder(frozen, compute, "backbone", True), config.batch_size
        side = config.image_size
        pixels = torch.randint(0, 256, (n, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        pixels = pixels.pin_memory() if compute.device.type == "cuda" else pixels
        ready = pixels.to(compute.device).float().contiguous(memory_format=torch.channels_last)

        def bare(_, encoder=encoder, ready=ready, compute=compute):
            with torch.inference_mode(), compute.autocast():
                encoder.backbone(ready)

        rates: dict[str, list[float]] = {"ours": [], "bare": []}
        for turn in range(3 if lab.quick else 24):
            for name, work in (("ours", embedder), ("bare", bare)):
                seconds = timed(work, pixels, compute.device)
                if turn:
                    rates[name].append(n / seconds)
        median = {name: statistics.median(values) for name, values in rates.items()}
        rows += [row(f"embedding with R50 at 224, {precision}", median["ours"], "images/s"),
                 row(f"embedding with R50 at 224, {precision}: ours against the bare network",
                     median["ours"] / median["bare"], "times", "0.93", "our aim")]
    return rows


def cifar(lab: Lab, symmetric: bool) -> list[dict]:
    """The authors' CIFAR-10 demo: 200 epochs, then their kNN protocol."""
    folder, name = cifar_images(lab), "symmetric" if symmetric else "asymmetric"
    workspace = lab.output / f"cifar-{name}"
    tool = [sys.executable, "-m", "mocoembed"]
    common = ["--workspace", str(workspace), "--device", lab.device]
    flags = [*(["--symmetric"] if symmetric else []), *(QUICK_CIFAR if lab.quick else [])]
    run_until([*tool, "pretrain", str(folder / "train"), "--recipe", "cifar10", "--cache", "ram", "--run", "run",
               *flags, *common], lab.end, workspace / "runs" / "run" / "metrics.jsonl")
    for part in ("train", "test"):
        subprocess.run([*tool, "embed", str(folder / part), "--features", "projection", "--output",
                        str(workspace / f"{part}.h5"), *common], check=True)
    found = subprocess.run([*tool, "knn", str(workspace / "train.h5"), str(workspace / "test.h5"), "--preset", "moco",
                            "--json", *common], check=True, stdout=subprocess.PIPE, text=True)
    accuracy = json.loads(found.stdout)["results"][0]["top1"]
    lines = [json.loads(line) for line in (workspace / "runs" / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = statistics.median(line["images_per_second"] for line in lines if "loss" in line)
    return [row(f"CIFAR-10, 200 epochs, {name}: kNN (k 200, T 0.1, 128-d output)", accuracy, "%",
                "85.3 +- 0.7" if symmetric else "82.6 +- 0.7", "the authors' demo"),
            row(f"CIFAR-10, {name}: pretraining", rates, "images/s", "" if symmetric else "2500",
                "" if symmetric else "the authors' demo on a V100: 20 s an epoch")]


def cifar_images(lab: Lab) -> pathlib.Path:
    """The folder with `train` and `test`: the one given, or the original pixels as PNG files, or generated images."""
    if lab.cifar:
        return pathlib.Path(lab.cifar)
    folder = lab.output / "cifar"
    if (folder / "complete").exists():
        return folder
    if lab.quick:
        for part, count in (("train", 48), ("test", 24)):
            write_collection(folder / part, count)
    else:
        import torchvision

        for part in ("train", "test"):
            images = torchvision.datasets.CIFAR10(str(lab.output / "download"), part == "train", download=True)
            for i, (image, label) in enumerate(images):
                place = folder / part / images.classes[label]
                place.mkdir(parents=True, exist_ok=True)
                image.save(place / f"{i:05d}.png")
    (folder / "complete").touch()
    return folder


def run_until(command: list[str], end: float, metrics: pathlib.Path):
    """Run a command that saves on SIGTERM and goes on when it is run again; `OutOfTime` when it had to be stopped."""
    child = subprocess.Popen(command)
    try:
        status = child.wait(max(1.0, end - SECONDS_TO_SAVE - time.monotonic()))
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGTERM)
        if (status := child.wait()) == 128 + signal.SIGTERM:
            steps = metrics.read_text().splitlines() if metrics.exists() else []
            raise OutOfTime(f"{len(steps)} lines of metrics so far") from None
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")


def search(lab: Lab) -> list[dict]:
    """Exact search and all near pairs by torch, FAISS on the GPU against the CPU; on vectors of `index_scale.py`."""
    import faiss

    count, dimension, lists = (2_000, 16, 16) if lab.quick else (1_000_000, 256, 4096)
    path, queries = lab.output / "vectors.h5", next(mixture(dimension, 500, 2))
    write(path, mixture(dimension, count, 1), count, dimension)
    with EmbeddingFile(path) as file:
        base, vectors, where = file.embeddings(), GpuVectors(file, lab.device), f"{count:,} x {dimension}"
        _, exact = vectors.rows().nearest(queries, 10)
        begun = time.perf_counter()
        vectors.rows().nearest(queries, 10)
        seconds = time.perf_counter() - begun
        rows = [row(f"exact search by torch, {where}", 1000 * seconds / len(queries), "ms a query")]
        begun = time.perf_counter()
        pairs = sum(len(some[0]) for some in vectors.pairs(0.95, lambda done: None))
        rows.append(row(f"all near pairs by torch, {where}: {pairs:,}", time.perf_counter() - begun, "s"))
    del vectors
    if lab.device != "cpu" and not gpus():
        return [*rows, row("FAISS on the GPU", None, "not measured: this faiss has no part for GPUs")]
    resources = faiss.StandardGpuResources() if lab.device != "cpu" else None
    number = torch.device(lab.device).index or 0
    for kind in ("Flat", f"IVF{lists},Flat", f"IVF{lists},SQ8"):
        index = faiss.index_factory(dimension, kind, faiss.METRIC_INNER_PRODUCT)
        index.train(base[:50 * lists])
        index.add(base)
        for place in ("CPU", "GPU") if resources else ("CPU",):
            searched = faiss.index_cpu_to_gpu(resources, number, index) if place == "GPU" else index
            if kind != "Flat":
                searched.nprobe = 16
            searched.search(queries, 10)
            begun = time.perf_counter()
            _, found = searched.search(queries, 10)
            seconds = time.perf_counter() - begun
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), exact.tolist())])
            what = f"FAISS {kind} on the {place}, {where}"
            rows += [row(what, 1000 * seconds / len(queries), "ms a query"), row(f"{what}: recall@10", recall, "")]
    return rows


PIECES: dict[str, Callable[[Lab], list[dict]]] = {
    "check": check, "step-bf16": lambda lab: step_speed(lab, "bf16"), "step-fp16": lambda lab: step_speed(lab, "fp16"),
    "loading": loading, "embedding": embedding, "search": search, "cifar-asymmetric": lambda lab: cifar(lab, False),
    "cifar-symmetric": lambda lab: cifar(lab, True)}
