"""How soon the page shows hits in a browser: from a click on an image, or from an upload, to the first eight decoded.

    python -m benchmarks.page_speed WORKSPACE                          # what is embedded there
    python -m benchmarks.page_speed WORKSPACE --make FOLDER --rows 50000
    python -m benchmarks.page_speed WORKSPACE --make FOLDER --rows 1000000 --arch resnet18 --width 0.25 --image-size 64

With --make, WORKSPACE first gets embeddings of FOLDER's images as often as it takes for --rows rows, each time below
another link to the folder, and an index where one pays. The vectors are made up (`index_scale.mixture`: clusters), the
encoder that embeds uploads has random weights. Needs Playwright and Chromium.
"""

import hashlib
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys

import click
import numpy as np
import torch

from benchmarks.index_scale import mixture
from benchmarks.serve_speed import resident
from mocoembed.config import EmbedConfig, IndexConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import FACTS
from mocoembed.data.images import Listing, PathTable, scan
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.store_writer import Settings, write_embeddings
from mocoembed.model.encoder import Encoder, EncoderSpec
from mocoembed.model.encoder_file import FrozenEncoder, save_encoder
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD
from mocoembed.search.build import build_index
from mocoembed.workspace import Workspace

FIRST = 8  # hits that must be decoded
SAMPLE_THERE = """async (first) => {
    while ([...document.querySelectorAll('#grid .tile img')].filter(image => image.naturalWidth).length < first)
        await new Promise(resolve => setTimeout(resolve, 50));
}"""
UNTIL_THERE = """async ([how, first]) => {
    const grid = document.querySelector('#grid');
    const tiles = [...grid.querySelectorAll('.tile')].filter(tile => tile.querySelector('img')?.naturalWidth);
    const tile = tiles[Math.floor(Math.random() * Math.min(tiles.length, 20))];
    const before = grid.firstElementChild;
    let file;
    if (how === 'upload') {
        const answer = await fetch(tile.querySelector('img').src);
        file = new File([await answer.blob()], `${Math.random()}.jpg`, {type: 'image/jpeg'});
    }
    const begun = performance.now();
    if (file) {
        const files = new DataTransfer();
        files.items.add(file);
        const input = document.querySelector('#files');
        input.files = files.files;
        input.dispatchEvent(new Event('change', {bubbles: true}));
    } else tile.querySelector('a').click();
    while (true) {
        const images = [...grid.querySelectorAll('.tile img')].slice(0, first);
        if (grid.firstElementChild !== before && images.length === first
            && images.every(image => image.complete && image.naturalWidth)) break;
        if (performance.now() - begun > 30000) throw new Error('no hits within 30 s');
        await new Promise(resolve => requestAnimationFrame(resolve));
    }
    return performance.now() - begun;
}"""


def make(places: Workspace, folder: str, rows: int, spec: EncoderSpec, image_size: int):
    """Encoder, embeddings and index, unless they are there."""
    if places.embeddings.exists():
        return
    links = places.root / "links"
    links.mkdir(parents=True)
    torch.manual_seed(0)
    made = Encoder(spec).eval().requires_grad_(False)
    transform = EvaluationTransform.of(image_size, IMAGENET_MEAN, IMAGENET_STD)
    encoder = places.root / "random.safetensors"
    save_encoder(encoder, FrozenEncoder(made, transform, {}))
    listing = scan(folder)
    (places.root / "one.txt").write_text(os.fsdecode(listing.full_path(0)) + "\n")
    embed_images(EmbedConfig((str(places.root / "one.txt"),), str(places.root), str(encoder)))  # and its graph
    times = -(-rows // len(listing))
    for number in range(times):
        (links / f"{number:03d}").symlink_to(os.path.abspath(folder))
    paths = [b"%03d/%s" % (number, path) for number in range(times) for path in listing.paths][:rows]
    labels = np.tile(listing.labels, times)[:rows].astype(np.int32)
    facts = np.tile(facts_of(listing), times)[:rows]
    root = os.fsencode(links.absolute())
    tiled = Listing(root, PathTable(paths), labels, listing.label_names, {}, (), root)
    with EmbeddingFile(places.embeddings) as file:
        settings = Settings(file.encoder, file.features, file.normalized, file.dimension, file.precision, "parent")
    filled = places.embeddings.with_suffix(".filled")
    write_embeddings(filled, tiled, settings, np.ones(rows, bool), facts, mixture(settings.dimension, rows, 1), [])
    os.replace(filled, places.embeddings)
    build_index(IndexConfig(workspace=str(places.root), allow_lower_recall=True))


def facts_of(listing: Listing) -> np.ndarray:
    """(N,) of `FACTS`: digests and sizes of the files; their pixels, which take longer, are left out."""
    facts = np.zeros(len(listing), FACTS)
    for row in range(len(listing)):
        data = pathlib.Path(os.fsdecode(listing.full_path(row))).read_bytes()
        facts[row]["size"], facts[row]["digest"] = len(data), np.void(hashlib.sha256(data).digest())
    return facts


def measure(address: str, runs: int) -> dict[str, list[float]]:
    """Milliseconds of each run, and whether the page said anything wrong."""
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    times: dict[str, list[float]] = {"click": [], "upload": []}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        for how, some in times.items():
            for _ in range(runs):
                page.goto("about:blank")
                page.goto(address)  # another sample
                page.evaluate(SAMPLE_THERE, FIRST)
                page.wait_for_timeout(500)
                some.append(page.evaluate(UNTIL_THERE, [how, FIRST]))
        browser.close()
    print(f"errors: {len(wrong)} {wrong[:3]}")
    return times


@click.command(help=__doc__, context_settings={"max_content_width": 110})
@click.argument("workspace")
@click.option("--make", "folder", help="Folder of images.")
@click.option("--rows", default=50_000, show_default=True)
@click.option("--arch", default="resnet50", show_default=True)
@click.option("--width", default=1.0, show_default=True)
@click.option("--image-size", default=224, show_default=True)
@click.option("--runs", default=20, show_default=True)
def main(workspace, folder, rows, arch, width, image_size, runs):
    """Make what is missing, measure, print."""
    if folder:
        make(Workspace(workspace), folder, rows, EncoderSpec(arch, width, "7x7s2-pool", "none", 0), image_size)
    command = [sys.executable, "-m", "mocoembed", "serve", "--workspace", workspace, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://\S+/", server.stdout.readline()).group()
            for how, some in measure(address, runs).items():
                print(f"{how:<7} to {FIRST} hits: median {statistics.median(some):4.0f} ms, "
                      f"{min(some):.0f} to {max(some):.0f}")
            print(f"{resident(server.pid):.0f} MB")
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
