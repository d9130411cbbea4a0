"""The code for GPUs by PyTorch's own rules for shapes, dtypes, memory layouts and devices, without values (FakeTensor).

What this finds: a tensor left on the wrong device, a shape that does not fit, a dtype that autocast or a gradient does
not have, channels-last lost on the way, a value that the host waits for, a collective on tensors of the CPU. What it
cannot find, because nothing is computed and no kernel runs: wrong numbers (test_pretended_cuda.py has the CPU's,
gpu_check.py a real GPU's), overflow in fp16, a kernel that is missing or refuses its input, races between streams, too
little memory, what cuDNN, the compiler, DistributedDataParallel, SyncBatchNorm and NCCL do, and speed. The backward
pass goes through the graph node by node, not by PyTorch's engine.

Each part runs in a process of its own, this file as a script: telling PyTorch that there is a GPU cannot be taken back.
"""

import functools
import json
import pathlib
import sys

import pytest
from own_process import ROOT, found_by

from mocoembed.model.ranks import GATHER

CASES = ("queue", "masked", "symmetric", "keys-own-views", "groups-at-once", "symmetric-in-pieces", "sync",
         "end-to-end", "separate", "two-heads", "memory-bank", "resident")
DTYPES = {"fp64": "torch.float64", "tf32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}
COLLECTIVES = (GATHER, "all_to_all_single", "all_reduce", "all_gather_object",
               "broadcast_object_list")
STEPS = [("queue", precision) for precision in DTYPES] + [(case, "fp16") for case in CASES[1:]]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What all parts have found."""
    return found_by(__file__, tmp_path_factory.mktemp("fake"))


@pytest.mark.parametrize(("case", "precision"), STEPS)
def test_a_step_of_every_dictionary(found, case, precision):
    """All that is trained has a gradient; nothing waits but fp16's scaler; channels-last all the way.

    That is what goes into a convolution and comes out, its weights and their gradients. Not looked at in fp64, which
    cuDNN does not do channels-last, nor in bf16, for which PyTorch asks the GPU what it can do.
    """
    step = dict(found["steps"][f"{case} {precision}"])
    layouts = step.pop("other layouts")
    assert layouts == [] or precision in ("fp64", "bf16")
    assert step == {"devices": ["cuda:0"], "without gradient": [], "dtypes": [DTYPES[precision]],
                    "waits": ["_local_scalar_dense"] if precision == "fp16" else []}


def test_embedder(found):
    for case, what in found["embedder"].items():
        assert what == {"shape": [4, 64 if case.startswith("backbone") else 16], "device": "cpu",
                        "dtype": "torch.float32", "layouts": []}, case


@pytest.mark.parametrize("place", ["in the GPU's memory", "in the host's memory"])
def test_resident_images(found, place):
    assert found["resident"][place] == {"images": "cuda:0" if "GPU" in place else "cpu", "shape": [5, 3, 16, 16],
                                        "of keys": [5, 3, 24, 24], "device": "cuda:0", "dtype": "torch.uint8",
                                        "channels last": True, "waits": []}


def test_the_memory_of_a_step_is_measured_on_the_device(found):
    assert found["memory"] == {"groups_at_once": 2}


def test_no_rank_waits_for_its_gpu_to_exchange_crops(found):
    """The rows that it sends and receives are known on the CPU; from memory that is not pinned a copy would wait."""
    assert found["exchange"] == {"shape": [4, 8, 8, 3], "device": "cuda:0", "waits": []}


@pytest.mark.parametrize("case", ["queue", "masked", "symmetric", "end-to-end", "memory-bank"])
def test_what_ranks_tell_each_other_in_a_step_lies_on_their_gpus(found, case):
    """Nothing goes by objects, for which all would wait; nor does a rank wait for its own GPU."""
    step = found["ranks"][case]
    assert step["devices"] == ["cuda:0"]
    assert step["waits"] == []
    assert step["collectives"] == [GATHER, "all_reduce",
                                   *(["all_to_all_single"] if case != "memory-bank" else [])]


def test_the_step_that_benchmarks_measure_waits_for_nothing(found):
    """As in training; else the host would not be ahead of the GPU, and ours would be measured too slow."""
    assert found["benchmark"] == {"waits": []}


def test_faults_are_found(found):
    """Of each kind that is looked for, one."""
    assert "cuda:0 and cpu" in found["faults"]["device"]
    assert "8" in found["faults"]["shape"]
    assert "5" in found["faults"]["shape"]
    assert found["faults"]["layout"] == ["conv"]
    assert found["faults"]["wait"] == ["_local_scalar_dense", "download", "upload from memory that is not pinned"]


# ------------------------------------------------------------------------------------- in a process of its own


def run_steps(folder: pathlib.Path) -> dict:
    """A step of every case, looked at; of the queue the second one in every precision."""
    lab, steps = gpu_checks.Lab("cuda", folder, True), {}
    changes = {**gpu_checks.VARIANTS, "masked": {"mask_same_image": True}, "groups-at-once": {}, "resident": {},
               "symmetric-in-pieces": {"symmetric": True, "mask_same_image": True},
               "separate": {"dictionary": "end-to-end", "key_encoder": "separate"},
               "keys-own-views": {"key_image_size": 48}}
    for case, precision in STEPS:
        config = gpu_checks.tiny(lab, {**changes[case], "precision": precision})
        with FakeGpu() as gpu:
            at_once = int(case in ("groups-at-once", "symmetric-in-pieces"))
            steps[f"{case} {precision}"] = stepped(config, gpu, at_once, case == "resident")
    return steps


def stepped(config, gpu, at_once: int, with_images: bool) -> dict:
    """The last step, looked at; `with_images`: its crops are made of images in the GPU's memory."""
    compute = Compute.of("auto", config.precision)
    compute.tune()
    training = set_up(config, compute, gpu_checks.IMAGES)
    training.groups_at_once = at_once or training.groups
    watched, images = Watched(training.method), None
    if with_images:
        pixels = torch.zeros(gpu_checks.IMAGES, 20, 24, 3, dtype=torch.uint8)
        stack = type("Stack", (), {"stacked": lambda self: pixels})()
        images = ResidentImages(stack, config.view_sizes, compute.device)
    for step in range(2 if config.dictionary == "queue" and not config.symmetric else 1):
        batch = gpu_checks.made_up_batch(config, step)
        if with_images:
            batch = batch._replace(crops=(torch.tensor([[0, 0, 9, 9]] * config.batch_size),) * 2)
        batch = pin_memory(batch)
        gpu.waits.clear()
        views = make_views(batch, training, images)
        assert len(views.pieces) == (2 if at_once else 0)
        training_step(training, views, (), lambda numbers: None)
    trained = {name: one for name, one in training.method.named_parameters() if one.requires_grad}
    watched.look_at_gradients(trained)
    return {"devices": sorted({str(one.device) for one in training.method.state_dict().values()}),
            "without gradient": [name for name, one in trained.items() if one.grad is None
                                 or (one.grad.device, one.grad.shape) != (one.device, one.shape)],
            "dtypes": sorted(watched.dtypes), "other layouts": sorted(watched.others), "waits": gpu.waits}


class Watched:
    """What the convolutions of a module make, and where it is not channels-last."""

    def __init__(self, module):
        self.dtypes, self.others = set(), set()
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Conv2d):
                layer.register_forward_hook(functools.partial(self.look, name))

    def look(self, name, layer, arguments, made):
        given, = arguments
        self.dtypes.add(str(made.dtype))
        if not all(one.is_contiguous(memory_format=torch.channels_last) for one in (given, layer.weight, made)):
            self.others.add(name)

    def look_at_gradients(self, trained):
        for name, one in trained.items():
            if one.dim() == 4 and not one.grad.is_contiguous(memory_format=torch.channels_last):
                self.others.add(f"gradient of {name}")


def run_embedder(folder: pathlib.Path) -> dict:
    """Four images through the embedder, in every precision that it has on a GPU."""
    config = gpu_checks.tiny(gpu_checks.Lab("cpu", folder, True), {})
    weights = set_up(config, Compute.of("cpu", "fp32"), gpu_checks.IMAGES).method.encoder_q.state_dict()
    pixels, what = gpu_checks.made_up_batch(config, 0).crops[0][:4], {}
    for features in ("backbone", "projection"):
        for precision in ("fp32", "fp16"):
            with FakeGpu():
                embedder = Embedder(frozen_encoder(weights, config, {}), Compute.of("auto", precision), features, True)
                watched = Watched(embedder._inference)
                vectors = embedder(pixels)
                what[f"{features} {precision}"] = {"shape": list(vectors.shape), "device": str(vectors.device),
                                                   "dtype": str(vectors.dtype), "layouts": sorted(watched.others)}
    return what


def run_resident() -> dict:
    """Crops of two sizes from images in both memories."""
    pixels, what = torch.zeros(9, 20, 24, 3, dtype=torch.uint8), {}
    stack = type("Stack", (), {"stacked": lambda self: pixels})()
    for place, share in (("in the GPU's memory", 0.25), ("in the host's memory", 0.0)):
        with FakeGpu() as gpu, mock.patch.object(resident, "SHARE_OF_GPU", share):
            rows, boxes = torch.arange(5).pin_memory(), torch.tensor([[0, 0, 9, 9]] * 5).pin_memory()
            images = ResidentImages(stack, (16, 24), Compute.of("cuda", "fp32").device)
            gpu.waits.clear()
            crops, of_keys = (images.crops(rows, boxes, view) for view in range(2))
            what[place] = {"images": str(images.pixels.device), "device": str(crops.device), "dtype": str(crops.dtype),
                           "shape": list(crops.shape), "of keys": list(of_keys.shape), "waits": gpu.waits,
                           "channels last": crops.is_contiguous(memory_format=torch.channels_last)}
    return what


def run_memory(folder: pathlib.Path) -> dict:
    """The plan of a step's memory, by a trial on the device."""
    config = gpu_checks.tiny(gpu_checks.Lab("cuda", folder, True), {"precision": "bf16"})
    with FakeGpu():
        training = set_up(config, Compute.of("auto", "bf16"), gpu_checks.IMAGES)
        plan(training, 1, lambda text: None)
    return {"groups_at_once": training.groups_at_once}


def run_exchange() -> dict:
    """Rank 0 of two, whose other rank sends nothing but shapes."""
    ranks, order = Ranks(0, 2), torch.tensor([3, 6, 1, 4, 0, 7, 2, 5])
    with FakeGpu() as gpu, mock.patch("torch.distributed.all_to_all_single"):
        x = torch.zeros(4, 8, 8, 3, dtype=torch.uint8).pin_memory().to("cuda")
        gpu.waits.clear()
        rows = ranks.exchange(x, order)
    return {"shape": list(rows.shape), "device": str(rows.device), "waits": gpu.waits}


def run_ranks(folder: pathlib.Path) -> dict:
    """A step of rank 0 of two, the second: what it gives to collectives, which do nothing, and what it waits for."""
    lab, found = gpu_checks.Lab("cuda", folder, True), {}
    changes = {**gpu_checks.VARIANTS, "masked": {"mask_same_image": True}}
    for case in ("queue", "masked", "symmetric", "end-to-end", "memory-bank"):
        config = gpu_checks.tiny(lab, {"precision": "fp32", **changes[case]})
        called: dict[str, list] = {}
        with contextlib.ExitStack() as held:
            gpu = held.enter_context(FakeGpu())
            for name in COLLECTIVES:
                held.enter_context(mock.patch(f"torch.distributed.{name}", partial(noted, called, name)))
            held.enter_context(mock.patch.object(Ranks, "wrap", lambda self, module: module))
            training = set_up(config, Compute.of("auto", "fp32"), gpu_checks.IMAGES, Ranks(0, 2))
            half = dataclasses.replace(config, batch_size=config.batch_size // 2, bn_groups=1)
            for step in range(2):
                order = torch.from_numpy(shuffle_order(0, step, config.batch_size)) if config.shuffles_keys else None
                batch = pin_memory(gpu_checks.made_up_batch(half, step)._replace(order=order))
                gpu.waits.clear()
                training_step(training, make_views(batch, training), (), lambda numbers: None)
            found[case] = {"devices": sorted({str(one.device) for some in called.values() for one in some}),
                           "collectives": sorted(called), "waits": gpu.waits}
    return found


def noted(called: dict[str, list], name: str, *arguments, **_):
    """A collective that does nothing but note its tensors."""
    called.setdefault(name, []).extend(one for one in arguments if isinstance(one, torch.Tensor))


def run_benchmark() -> dict:
    """What the step of `pretrain_speed.py` waits for."""
    config = gpu_checks.tiny(gpu_checks.Lab("cuda", pathlib.Path(), True), {"precision": "fp32"})
    with FakeGpu() as gpu:
        step = our_step(config, Compute.of("auto", "fp32"))
        views = [torch.zeros(config.batch_size, 3, 32, 32).to("cuda").contiguous(memory_format=torch.channels_last)] * 2
        gpu.waits.clear()
        step(views)
    return {"waits": gpu.waits}


def run_faults() -> dict:
    """Of each kind one fault, and what is said of it."""
    what = {}
    with FakeGpu() as gpu:
        x = torch.ones(2, 3, 8, 8).to("cuda")
        for name, fault in (("device", lambda: x + torch.ones(8)), ("shape", lambda: x[0, 0] @ x[0, 0, :5])):
            try:
                fault()
            except RuntimeError as error:
                what[name] = str(error)
        layers = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(3, 4, 3), "other": torch.nn.Conv2d(3, 4, 3)})
        layers = layers.to("cuda").to(memory_format=torch.channels_last)
        watched = Watched(layers)
        layers["conv"](x), layers["other"](x.contiguous(memory_format=torch.channels_last))
        what["layout"] = sorted(watched.others)
        gpu.waits.clear()
        x.sum().item(), x.cpu(), torch.ones(2).to("cuda", non_blocking=True)
        torch.ones(2).pin_memory().to("cuda", non_blocking=True)
        what["wait"] = gpu.waits
    return what


if __name__ == "__main__":
    import contextlib
    import dataclasses
    from functools import partial
    from unittest import mock

    import torch
    from torch.utils.data._utils.pin_memory import pin_memory

    sys.path += [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]
    import gpu_checks
    from fake_cuda import FakeGpu
    from pretrain_speed import our_step

    from mocoembed.data import resident
    from mocoembed.data.loader import shuffle_order
    from mocoembed.data.resident import ResidentImages
    from mocoembed.model.embedder import Embedder
    from mocoembed.model.precision import Compute
    from mocoembed.model.ranks import Ranks
    from mocoembed.train.memory_plan import plan
    from mocoembed.train.run import frozen_encoder, set_up
    from mocoembed.train.step import make_views, training_step

    torch.set_num_threads(1)
    place = pathlib.Path(sys.argv[1])
    print(json.dumps({"faults": run_faults(), "exchange": run_exchange(), "resident": run_resident(),
                      "ranks": run_ranks(place), "benchmark": run_benchmark(),
                      "embedder": run_embedder(place), "memory": run_memory(place), "steps": run_steps(place)}))
