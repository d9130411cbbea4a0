"""How fast is embedding, against the bare model (the limit), a plain torchvision loop and lightly (peers)?

    pip install lightly
    python -m benchmarks.embed_speed SCRATCH --photographs flowers --only model,kept,folded,ours
    python -m benchmarks.embed_speed SCRATCH --photographs flowers --kind large --only ours,plain
    python -m benchmarks.embed_speed SCRATCH --photographs flowers --kind large --only ours-loading,plain-loading
    python -m benchmarks.embed_speed SCRATCH --writing
    python -m benchmarks.embed_speed SCRATCH --report

A ResNet-50 (or --arch) with random weights at 224 pixels. The collections are made in SCRATCH: photographs as they are
(`usual`) or enlarged to a longer side of 4,000 pixels (`large`; the same 40, with other bytes after their end). Every
contender embeds a smaller and a larger collection in full, start and end included, and the figure is the difference of
images by the difference of seconds (and of seconds of processor, of all processes): the steady state, without what is
done once or loaded ahead. Each is measured in a process of its own, as ours has its process keep freed memory. In each
round the contenders take turns; ratios are within a round. Rounds add up in SCRATCH/measured.jsonl, and the table tells
all of them.

model: the network on ready float tensors, channels last. kept: the same in a process that keeps freed memory. folded:
the same with BatchNorm folded into the convolutions. embedder: our `Embedder` on ready uint8 pixels. ours:
`embed_images`, as `mocoembed embed`; ours-compiled: with `--compile`. plain: ImageFolder, DataLoader,
Resize(256), CenterCrop, ToTensor, Normalize, no_grad, one numpy.save. lightly: `SelfSupervisedEmbedding.embed` on a
`LightlyDataset`, with its command's transform. The loading of ours and of plain, alone: what a fast GPU would wait for.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import resource
import shutil
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from operator import itemgetter

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import numpy as np
import torch

from benchmarks.decoders import chosen, enlarged
from benchmarks.embed_contenders import CONTENDERS, SIDE, Lab
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import FACTS
from mocoembed.data.images import scan
from mocoembed.data.loader import worker_count
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.embed.work import WorkFile, record_type
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, save_encoder, tool_provenance
from mocoembed.model.precision import Compute
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD

DISTINCT = 40  # photographs that are enlarged
DIMENSION, COMMIT = 2048, 1024
# kind -> (images in the smaller and the larger collection, images in a batch); more than are loaded ahead
SIZES = {"usual": ("160,480", 32), "large": ("80,176", 16)}
AGAINST = [("kept", "model"), ("ours", "model"), ("ours", "kept"), ("ours", "folded"), ("ours", "plain"),
           ("ours", "lightly"), ("ours-compiled", "plain"), ("ours-compiled", "lightly"),
           ("ours-loading", "plain-loading")]


def collection(lab: Lab, photographs: pathlib.Path, kind: str, count: int) -> pathlib.Path:
    """A folder of `count` files of that kind, made if it is not there."""
    folder = lab.scratch / f"{kind}-{count}"
    if not folder.exists():
        some = chosen(photographs, DISTINCT if kind == "large" else count)
        some = [enlarged(data) for data in some] if kind == "large" else some
        making = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(making, ignore_errors=True)
        (making / "images").mkdir(parents=True)
        for i in range(count):
            (making / "images" / f"{i:05d}.jpg").write_bytes(some[i % len(some)] + i.to_bytes(4, "big"))
        making.rename(folder)
    return folder


def seconds(work: Callable[[], None]) -> tuple[float, float]:
    """(on the clock, of the processor by this process and the children it has waited for)."""
    def processor() -> float:
        used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(one.ru_utime + one.ru_stime for one in used)

    begun, used = time.perf_counter(), processor()
    work()
    return time.perf_counter() - begun, processor() - used


def contend(lab: Lab, name: str, folder: pathlib.Path) -> tuple[float, float]:
    """`seconds` of one contender with one folder."""
    return seconds(lambda: CONTENDERS[name](lab, folder))


def measure(lab: Lab, name: str, folders: list[pathlib.Path]) -> tuple[float, float]:
    """(images per second, milliseconds of processor an image) in the steady state."""
    small, large = (len(os.listdir(folder / "images")) for folder in folders)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as apart:
        if name == "ours-compiled":
            apart.submit(contend, lab, name, folders[0]).result()  # fills the compiler's cache
        few, many = (apart.submit(contend, lab, name, folder).result() for folder in folders)
    return (large - small) / (many[0] - few[0]), 1e3 * (many[1] - few[1]) / (large - small)


def write_both(scratch: pathlib.Path, frozen: FrozenEncoder, count: int) -> dict:
    """Rows per second of our work file and embeddings file, and of one `numpy.save` flushed to the disk."""
    folder = scratch / f"empty-{count}"
    if not folder.exists():
        folder.mkdir()
        for i in range(count):
            (folder / f"{i:06d}.jpg").touch()
    listing, facts = scan(str(folder), "none"), np.zeros(COMMIT, FACTS)
    rows = np.random.default_rng(0).random((COMMIT, DIMENSION), np.float32)
    firsts = range(0, count, COMMIT)
    paths = scratch / "writing.work", scratch / "writing.h5", scratch / "writing.npy"

    def work():
        WorkFile.begin(paths[0], {"key": {}, "listed": count}, {}, count, COMMIT,
                       record_type(DIMENSION, "float32"))
        with WorkFile(paths[0]) as file:
            for first in firsts:
                n = min(COMMIT, count - first)
                file.write(first, rows[:n], facts[:n], np.zeros(n, bool), [])
                file.commit(first + n)

    def publish():
        settings = Settings(frozen.metadata(), "backbone", True, DIMENSION, "fp32", "none")
        with WorkFile(paths[0]) as file:
            write_embeddings(paths[1], listing, settings, np.ones(count, bool), np.zeros(count, FACTS),
                             (block["vector"] for _, block in file.blocks()), [])

    def raw():
        with open(paths[2], "wb") as file:
            np.save(file, np.tile(rows, (len(firsts), 1))[:count])
            os.fsync(file.fileno())

    found = {part.__name__: count / seconds(part)[0] for part in (work, publish, raw)}
    for path in paths:
        path.unlink()
    return {"kind": "writing", "arch": None, "batch_size": COMMIT, "rows": count, **found}


def spread(values: list[float], digits: int) -> str:
    """Median (lowest to highest)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(lines: list[dict]):
    """Print a table for each kind of files, and one for writing."""
    setting = itemgetter("kind", "arch", "batch_size")
    for key in dict.fromkeys(map(setting, lines)):
        rounds = [line for line in lines if setting(line) == key]
        if key[0] == "writing":
            for part in ("work", "publish", "raw"):
                rates = [line[part] for line in rounds]
                print(f"writing, {part:8}: {spread(rates, 0)} rows/s, "
                      f"{statistics.median(rates) * DIMENSION * 4 / 1e6:.0f} MB/s, n {len(rates)}")
            both = [1 / (1 / line["work"] + 1 / line["publish"]) / line["raw"] for line in rounds]
            print(f"work and publish against numpy.save: {spread(both, 2)}")
            continue
        print(f"\n| {key[0]} files, {key[1]}, batch {key[2]} | images/s, median (lowest to highest) | "
              "ms of processor an image | n |\n| --- | --- | --- | --- |")
        for name in CONTENDERS:
            if found := [line["found"][name] for line in rounds if name in line["found"]]:
                rates, used = zip(*found)
                print(f"| {name} | {spread(rates, 1)} | {spread(used, 0)} | {len(found)} |")
        for one, other in AGAINST:
            pairs = [line["found"] for line in rounds if {one, other} <= set(line["found"])]
            if pairs:
                print(f"| {one} against {other} | {spread([pair[one][0] / pair[other][0] for pair in pairs], 2)} "
                      f"| {spread([pair[one][1] / pair[other][1] for pair in pairs], 2)} | {len(pairs)} |")


def prepare(arguments) -> Lab:
    """The scratch folder with a random encoder in it."""
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    encoder = Encoder(EncoderSpec(arguments.arch, 1.0, "7x7s2-pool", "none", 0)).eval().requires_grad_(False)
    frozen = FrozenEncoder(encoder, EvaluationTransform.of(SIDE, IMAGENET_MEAN, IMAGENET_STD), tool_provenance())
    save_encoder(arguments.scratch / "encoder.safetensors", frozen)
    return Lab(arguments.scratch, arguments.batch_size, worker_count(arguments.workers, 10**6),
               Compute.of(arguments.device, "fp32"), arguments.arch)


def main():
    """Measure a number of rounds and print the table of all that SCRATCH holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=pathlib.Path, metavar="SCRATCH")
    parser.add_argument("--photographs", type=pathlib.Path, help="Folder of JPEG files of some 500 pixels.")
    parser.add_argument("--kind", choices=tuple(SIZES), default="usual")
    parser.add_argument("--arch", choices=("resnet18", "resnet50"), default="resnet50")
    parser.add_argument("--only", default="model,kept,ours,plain,lightly", help=", ".join(CONTENDERS))
    parser.add_argument("--sizes", help="Images in both collections; by default as many as the kind needs.")
    parser.add_argument("--batch-size", type=int, help="By default 32, or 16 for large files.")
    parser.add_argument("--workers", type=int, help="Loading processes of each; by default as many as ours has.")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--writing", action="store_true", help="Measure writing instead.")
    parser.add_argument("--rows", type=int, default=50_000, help="Rows to write.")
    parser.add_argument("--report", action="store_true", help="Measure nothing.")
    arguments = parser.parse_args()
    sizes, batch_size = SIZES[arguments.kind]
    arguments.sizes, arguments.batch_size = arguments.sizes or sizes, arguments.batch_size or batch_size
    measured = arguments.scratch / "measured.jsonl"
    lab = None if arguments.report else prepare(arguments)
    for _ in range(0 if arguments.report else arguments.rounds):
        if arguments.writing:
            line = write_both(lab.scratch, lab.frozen, arguments.rows)
        else:
            folders = [collection(lab, arguments.photographs, arguments.kind, int(size))
                       for size in arguments.sizes.split(",")]
            found = {name: measure(lab, name, folders) for name in arguments.only.split(",")}
            line = {"kind": arguments.kind, "arch": lab.arch, "batch_size": lab.batch_size, "workers": lab.workers,
                    "device": str(lab.compute.device), "found": found}
        with open(measured, "a", encoding="utf-8") as file:
            print(json.dumps(line), file=file)
    report([json.loads(line) for line in measured.read_text(encoding="utf-8").splitlines()])


if __name__ == "__main__":
    main()
