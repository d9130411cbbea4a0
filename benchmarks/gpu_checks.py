"""The checks of `gpu_check.py`: each takes a `Lab`, gives a line with what it measured, and raises when it is wrong."""

import copy
import dataclasses
import json
import math
import os
import pathlib
import signal
from dataclasses import dataclass

import numpy as np
import torch
from index_scale import mixture, write

from mocoembed.config import PretrainConfig
from mocoembed.data.loader import ViewBatch, shuffle_order
from mocoembed.data.sample import write_collection
from mocoembed.data.views import ViewParameters, ViewSettings, apply_views, colour_parameters, draw
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import Interrupted, TrainingError
from mocoembed.files import StopRequest
from mocoembed.model.batchnorm import GroupedBatchNorm2d
from mocoembed.model.embedder import Embedder
from mocoembed.model.precision import Compute
from mocoembed.search.duplicates import near_pairs, unit
from mocoembed.search.exact import ExactRows
from mocoembed.search.faiss_index import FaissIndex, gpus
from mocoembed.search.on_gpu import GpuVectors
from mocoembed.train.checkpoint import load_newest
from mocoembed.train.loop import pretrain
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import frozen_encoder, run_folder, set_up
from mocoembed.train.step import make_views, training_step

IMAGES = 64
NEAR_PAIRS = 0.9  # cosine
VARIANTS = {"queue": {}, "symmetric": {"symmetric": True}, "sync": {"batchnorm": "sync", "bn_groups": 1},
            "end-to-end": {"dictionary": "end-to-end"},
            "two-heads": {"dictionary": "end-to-end", "key_encoder": "shared-backbone"},
            "memory-bank": {"dictionary": "memory-bank"}}
# How far a loss of about 3 may be from that of float64 within three steps.
NEAR = {"fp32": 1e-3, "tf32": 3e-2, "bf16": 1e-1, "fp16": 3e-2}


@dataclass(frozen=True)
class Lab:
    """Where the checks run."""

    device: str
    folder: pathlib.Path
    """Empty at first, for files."""
    quick: bool
    """Whether sizes are tiny."""


def tiny(lab: Lab, changes: dict) -> PretrainConfig:
    """A pretraining of seconds, with every operation on views, and these settings changed."""
    return PretrainConfig.of("small", str(lab.folder / "images"), **{
        "workspace": str(lab.folder / "workspace"), "width": 0.125, "stem": "3x3s2", "dim": 16, "queue_size": 32,
        "batch_size": 16, "bn_groups": 2, "image_size": 32, "lr": 0.003, "warmup_epochs": 0.0, "epochs": 2,
        "blur_probability": 0.5, "solarize_probability": 0.2, "mask_same_image": False, "device": lab.device,
        "processes": 1, "workers": 0 if lab.quick else 2, **changes})


def made_up_batch(config: PretrainConfig, step: int) -> ViewBatch:
    """Two noisy crops each of images in large blocks of colour, and all that is to be done to them."""
    n, random = config.batch_size, np.random.default_rng(step)
    blocks = random.integers(30, 226, (n, 8, 8, 3))
    large = [blocks.repeat(size // 8, axis=1).repeat(size // 8, axis=2) for size in config.view_sizes]
    crops = tuple(torch.from_numpy((one + random.integers(-30, 30, one.shape)).astype(np.uint8)).permute(0, 3, 1, 2)
                  for one in large)
    rows = np.arange(n * step, n * (step + 1)) % IMAGES
    order = shuffle_order(config.seed, step, n) if config.shuffles_keys else None

    def parameters(of_rows, view: int) -> ViewParameters:
        draws = np.stack([draw(config.seed, 0, row, view) for row in of_rows.tolist()])
        return colour_parameters(draws, ViewSettings.of(config))

    views = (0, 1) if config.symmetric else (0,)
    return ViewBatch(step, 0, torch.from_numpy(rows), None if order is None else torch.from_numpy(order), crops,
                     [parameters(rows, view) for view in views],
                     [parameters(rows if order is None else rows[order], 1 - view) for view in views], [])


def losses(config: PretrainConfig, device: str, steps: int = 3) -> list[float]:
    """Losses of the first steps, as pretraining makes them."""
    compute = Compute.of(device, config.precision)
    compute.tune()
    training, found = set_up(config, compute, IMAGES), []
    for step in range(steps):
        views = make_views(made_up_batch(config, step), training)
        found.append(float(training_step(training, views, (), lambda numbers: None)[0, 0]))
    return found


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference; infinite when a number is not finite."""
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    return max(differences) if all(map(math.isfinite, differences)) else math.inf


def require(holds: bool, what: str) -> str:
    """`what`, or an `AssertionError` that says it."""
    if not holds:
        raise AssertionError(what)
    return what


def check_float64(lab: Lab) -> str:
    """Losses of every dictionary against the CPU's, in float64."""
    differences = {}
    for name, changes in VARIANTS.items():
        config = tiny(lab, {"precision": "fp64", **changes})
        differences[name] = apart(losses(config, lab.device), losses(config, "cpu"))
    return require(max(differences.values()) < 1e-6, "losses against the CPU's: " + ", ".join(
        f"{name} {difference:.0e}" for name, difference in differences.items()))


def check_precisions(lab: Lab) -> str:
    """Losses in every arithmetic against those in float64."""
    exact = losses(tiny(lab, {"precision": "fp64"}), "cpu")
    names = [name for name in NEAR if name != "fp16" or lab.device != "cpu"]
    differences = {name: apart(losses(tiny(lab, {"precision": name}), lab.device), exact) for name in names}
    return require(all(difference < NEAR[name] for name, difference in differences.items()),
                   "losses against float64: " + ", ".join(f"{name} {one:.1e}" for name, one in differences.items()))


def check_views(lab: Lab) -> str:
    """Views against the CPU's, as pixels."""
    config = tiny(lab, {"batch_size": 64, "mean": (0.0,) * 3, "std": (1.0,) * 3})
    batch, settings = made_up_batch(config, 0), ViewSettings.of(config)
    views = [apply_views(batch.crops[0].to(device), batch.queries[0], settings).cpu() for device in (lab.device, "cpu")]
    worst = float((views[0] - views[1]).abs().max()) * 255
    return require(worst <= 2, f"64 views against the CPU's: at most {worst:.4f} of 255 apart")


def check_scaler(lab: Lab) -> str:
    """fp16: a step whose gradients overflow is left out and the scale halved; the next ones learn."""
    if lab.device == "cpu":
        return "not on a CPU, which has no fp16"
    config = tiny(lab, {"precision": "fp16"})
    training = set_up(config, Compute.of(lab.device, "fp16"), IMAGES)
    training.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=1000)
    moved = []
    for step in range(40):
        before = copy.deepcopy(training.method.encoder_q.state_dict())
        training_step(training, make_views(made_up_batch(config, step), training), (), lambda numbers: None)
        moved.append(any(not torch.equal(before[name], parameter)
                         for name, parameter in training.method.encoder_q.named_parameters()))
    scale = math.log2(training.scaler.get_scale())
    return require(not moved[0] and moved[-1] and scale == 40 - moved.count(False),
                   f"{moved.count(False)} of 40 steps left out, scale from 2^40 to 2^{scale:g}")


def check_layout(lab: Lab) -> str:
    """Channels-last weights and outputs against the other layout's."""
    compute = Compute.of(lab.device, "fp32")
    compute.tune()
    encoder = set_up(tiny(lab, {"precision": "fp32"}), compute, IMAGES).method.encoder_q.eval()
    weight = encoder.backbone.layer1[0].conv1.weight
    require(weight.is_contiguous(memory_format=torch.channels_last), "weights are not channels-last")
    x = torch.randn(16, 3, 32, 32, device=lab.device)
    with torch.no_grad():
        z = encoder(x.contiguous(memory_format=torch.channels_last))
        worst = float((copy.deepcopy(encoder).to(memory_format=torch.contiguous_format)(x) - z).abs().max() / z.std())
    return require(worst < 1e-3, f"projections in both layouts: {worst:.1e} of their spread apart")


def check_groups(lab: Lab) -> str:
    """BatchNorm in groups, its gradient and statistics, against one group after another in float64 on the CPU."""
    x = torch.randn(16, 8, 6, 6, dtype=torch.float64)
    layer = GroupedBatchNorm2d(8, groups=4).to(lab.device)
    own = x.to(lab.device, torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(own)
    (y ** 3).sum().backward()
    x.requires_grad_()
    plain = [torch.nn.BatchNorm2d(8).double() for _ in range(4)]
    expected = torch.cat([one(part) for one, part in zip(plain, x.chunk(4))])
    (expected ** 3).sum().backward()
    pairs = [(y, expected), (own.grad, x.grad),
             (layer.running_mean, torch.stack([one.running_mean for one in plain]).mean(0)),
             (layer.running_var, torch.stack([one.running_var for one in plain]).mean(0))]
    worst = max(float((one.detach().cpu().double() - other.detach()).abs().max()) for one, other in pairs)
    return require(worst < 3e-4, f"four groups, outputs, gradients, statistics: {worst:.1e} from the definition")


def check_resume(lab: Lab) -> str:
    """A pretraining stopped by SIGTERM and resumed, against one that was not, in float64."""
    write_collection(lab.folder / "images", IMAGES)
    curves, stopped = [], []
    for run, stop in (("whole", None), ("stopped", 3)):
        config = tiny(lab, {"run": run, "precision": "fp64"})
        watcher = Watcher(step=lambda report, steps, stop=stop: report.step == stop and os.kill(os.getpid(),
                                                                                                signal.SIGTERM))
        try:
            result = pretrain(config, watcher)
        except Interrupted as error:
            stopped.append(error.status)
            result = pretrain(config)
        lines = (result.run / "metrics.jsonl").read_text().splitlines()
        curves.append([json.loads(line)["loss"] for line in lines])
    require(stopped == [143], "the run was not stopped once with status 143")
    difference = apart(*curves)
    return require(difference < 1e-6, f"{len(curves[0])} steps, stopped after 4: losses {difference:.0e} apart")


def check_not_finite(lab: Lab) -> str:
    """A loss that is not finite ends the run, and no checkpoint holds such numbers."""
    write_collection(lab.folder / "images", IMAGES)
    config = tiny(lab, {"run": "diverging", "precision": "fp32", "lr": 1e30, "checkpoint_every": 1})
    try:
        pretrain(config)
    except TrainingError as error:
        message = str(error)
    else:
        raise AssertionError("a learning rate of 1e30 went through")
    state = load_newest(run_folder(config))
    finite = state is None or all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    return require(finite, message[:100])


def check_embedding(lab: Lab) -> str:
    """Embeddings against the CPU's."""
    config = PretrainConfig.of("cifar10", "none", width=0.125 if lab.quick else 1.0)
    weights = set_up(config, Compute.of("cpu", "fp32"), IMAGES).method.encoder_q.state_dict()
    pixels = made_up_batch(dataclasses.replace(config, batch_size=64), 0).crops[0]
    worst = 1.0
    for features in ("backbone", "projection"):
        vectors = [Embedder(frozen_encoder(weights, config, {}), Compute.of(device, "fp32"), features, True)(pixels)
                   for device in (lab.device, "cpu")]
        worst = min(worst, float((vectors[0] * vectors[1]).sum(dim=1).min()))
    return require(worst > 0.99999, f"64 images: cosines with the CPU's vectors at least {worst:.7f}")


def check_compile(lab: Lab) -> str:
    """Losses of compiled encoders against those of uncompiled ones."""
    torch.compiler.reset()
    config = tiny(lab, {"precision": "fp32"})
    difference = apart(losses(dataclasses.replace(config, compile=True), lab.device), losses(config, lab.device))
    return require(difference < NEAR["fp32"], f"losses of compiled encoders: {difference:.1e} from the others'")


def check_search(lab: Lab) -> str:
    """Exact search and near pairs against the CPU's; FAISS's inverted lists, where FAISS sees the GPU."""
    count, dimension = (2_000, 32) if lab.quick else (20_000, 256)
    path, queries = lab.folder / "vectors.h5", next(mixture(dimension, 200, 2))
    write(path, mixture(dimension, count, 1), count, dimension)
    with EmbeddingFile(path) as file, StopRequest() as stop:
        vectors = GpuVectors(file, lab.device, unit)
        for selected in (None, np.arange(5, count, 3)):
            both = [rows.nearest(queries, 10) for rows in (ExactRows(file, selected), vectors.rows(selected))]
            require(all(np.array_equal(*one) for one in zip(*both)), "exact search finds other rows or scores")
        found = [{(a, b): cosine for some in pairs for a, b, cosine in zip(*(one.tolist() for one in some))}
                 for pairs in (near_pairs(file, NEAR_PAIRS, lambda done, total: None, stop),
                               vectors.pairs(NEAR_PAIRS - 1e-6, lambda done: None))]
        apart = [found[0].get(pair, found[1].get(pair)) for pair in found[0].keys() ^ found[1].keys()]
        require(all(abs(one - NEAR_PAIRS) < 1e-5 for one in apart), "other near pairs are found")
        what = f"200 queries, and {len(found[0])} near pairs, as on the CPU"
        if lab.device == "cpu" or not gpus():
            return f"{what}; not FAISS's part for GPUs, as it sees none"
        for factory in ("IVF64,Flat", "IVF64,SQ8", "IVF64,PQ32"):
            index = FaissIndex.empty(dimension, factory)
            index.train(file.embeddings[:])
            index.add(file.embeddings[:], np.arange(count))
            ids = [one.search(queries, 10, 16)[1] for one in (index, index.on_gpu(torch.device(lab.device).index or 0))]
            same = np.mean([np.isin(*one).mean() for one in zip(*ids)])
            require(same >= 0.99, f"FAISS finds {1 - same:.1%} other rows on the GPU by {factory}")
        return f"{what}; FAISS's inverted lists there find the same rows"


CHECKS = {"float64": check_float64, "precisions": check_precisions, "views": check_views, "scaler": check_scaler,
          "layout": check_layout, "groups": check_groups, "resume": check_resume, "not-finite": check_not_finite,
          "embedding": check_embedding, "search": check_search, "compile": check_compile}
