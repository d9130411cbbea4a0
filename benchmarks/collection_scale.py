"""How long it takes to begin with a million images, and how much memory they take, against torchvision's ImageFolder.

    python benchmarks/collection_scale.py FOLDER [--images 1000000]

makes in FOLDER a tree of 1,000 folders (hard links to 64 small images), a list of the same files and 100 tar shards,
then measures each in a fresh process: seconds until the first image is read (and seconds of processor), the memory
that this adds, at its peak and after it, and what a loading process, forked or spawned, has to itself before and after
reading 20,000 images by number (JPEG files of 32 pixels: bytes only, nothing is decoded). The first scan finds our
cache folder empty, and of the file system whatever the operating system has in memory, as every scan does.
"""

import argparse
import io
import json
import os
import pathlib
import subprocess
import sys
import tarfile
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

FOLDERS, ORIGINALS, SHARDS, READ = 1000, 64, 100, 20_000
WHAT = ("ours-tree", "ours-list", "ours-shards", "imagefolder-tree")


def make(folder: pathlib.Path, images: int):
    """The tree, the list and the shards."""
    if (folder / "list.txt").exists():
        return
    originals = folder / "originals"
    originals.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(ORIGINALS):
        Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8)).save(originals / f"{number}.jpg")
    data = [(originals / f"{number}.jpg").read_bytes() for number in range(ORIGINALS)]
    names = [f"class-{number % FOLDERS:04d}/{number:07d}.jpg" for number in range(images)]
    for number in range(FOLDERS):
        (folder / "tree" / f"class-{number:04d}").mkdir(parents=True)
    for number, name in enumerate(names):
        os.link(originals / f"{number % ORIGINALS}.jpg", folder / "tree" / name)
    for shard in range(SHARDS):
        with tarfile.open(folder / f"shard-{shard:03d}.tar", "w") as tar:
            for number in range(shard, images, SHARDS):
                info = tarfile.TarInfo(f"{number:07d}.jpg")
                info.size = len(data[number % ORIGINALS])
                tar.addfile(info, io.BytesIO(data[number % ORIGINALS]))
    (folder / "list.txt").write_text("".join(f"tree/{name}\n" for name in names))


def status_megabytes(name: str) -> float:
    """A figure of this process's status: VmRSS (resident memory) or VmHWM (its peak)."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def private_megabytes() -> float:
    """Memory that this process shares with no other."""
    lines = pathlib.Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


class Probe:
    """A dataset: numbers of images -> what its process has to itself after reading them."""

    def __init__(self, read):
        self.read = read

    def __getitem__(self, rows):
        for row in rows:
            self.read(row)
        return private_megabytes()


class FolderReader:
    """Reads images of an ImageFolder."""

    def __init__(self, samples):
        self.samples = samples

    def __call__(self, row: int) -> bytes:
        return pathlib.Path(self.samples[row][0]).read_bytes()


class ListingReader:
    """Reads images of a listing."""

    def __init__(self, listing):
        self.listing = listing

    def __call__(self, row: int) -> bytes:
        return self.listing.read(row)[0]


def measure(what: str, folder: pathlib.Path) -> dict:
    """Open a collection in this process and read from it in others."""
    tool, kind = what.split("-")
    place = {"tree": folder / "tree", "list": folder / "list.txt",
             "shards": folder / f"shard-{{000..{SHARDS - 1:03d}}}.tar"}[kind]
    if tool == "ours":
        from mocoembed.data.images import scan
    else:
        from torchvision.datasets import ImageFolder
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status_megabytes("VmRSS")
    begun, worked = time.perf_counter(), time.process_time()
    if tool == "ours":
        collection = scan(place, note=lambda text: print(text, file=sys.stderr))
        reader = ListingReader(collection)
    else:
        collection = ImageFolder(str(place))
        reader = FolderReader(collection.samples)
    reader(0)
    result = {"images": len(collection), "seconds": time.perf_counter() - begun,
              "cpu": time.process_time() - worked,
              "peak MB": status_megabytes("VmHWM") - before, "kept MB": status_megabytes("VmRSS") - before}
    rows = np.random.default_rng(0).integers(0, len(collection), READ).tolist()
    for start in ("fork", "spawn"):
        loader = DataLoader(Probe(reader), batch_size=None, sampler=[[], rows], num_workers=1,
                            multiprocessing_context=start)
        result[f"{start} MB"] = list(loader)
    return result


def main():
    """Make the collections, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--measure", choices=WHAT, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.folder)))
        return
    make(arguments.folder, arguments.images)
    time.sleep(4)  # what has just changed is not kept
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    for what in WHAT:
        for again in (False, True):
            environment = {**os.environ, "MOCOEMBED_CACHE": str(arguments.folder / "cache")}
            run = subprocess.run([sys.executable, __file__, str(arguments.folder), "--measure", what], check=True,
                                 env=environment, stdout=subprocess.PIPE)
            result = json.loads(run.stdout)
            workers = "  ".join("{} worker {:.0f} -> {:.0f} MB".format(start, *result[f"{start} MB"])
                                for start in ("fork", "spawn"))
            print(f"{what:16} {'again' if again else 'first'}  {result['images']:8d} images "
                  f"{result['seconds']:7.2f} s ({result['cpu']:.2f} s of processor)  "
                  f"peak +{result['peak MB']:4.0f}, then +{result['kept MB']:4.0f} MB  {workers}", flush=True)


if __name__ == "__main__":
    main()
