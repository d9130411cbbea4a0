"""The whole pipeline on generated images: what `mocoembed demo` does, step by step, with its own measure."""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from mocoembed.config import (
    DemoConfig,
    EmbedConfig,
    IndexConfig,
    KnnConfig,
    PretrainConfig,
    SearchConfig,
)
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.images import Listing, scan
from mocoembed.data.loader import evaluation_batches
from mocoembed.data.sample import write_collection
from mocoembed.embed.extract import embed_images
from mocoembed.errors import UsageError
from mocoembed.evaluate.knn.accuracy import KnnResult, knn_accuracy
from mocoembed.knn import accuracy, classify
from mocoembed.model.encoder_file import save_encoder
from mocoembed.model.precision import Compute
from mocoembed.search.build import build_index
from mocoembed.search.query import search_images
from mocoembed.search.sheet import contact_sheet
from mocoembed.train.loop import pretrain
from mocoembed.train.monitor import Watcher
from mocoembed.train.run import frozen_encoder, set_up
from mocoembed.workspace import Workspace

K, TEMPERATURE = 20, 0.1
QUERIES_ON_THE_SHEET = 6
IMAGES = "generated-images"


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured and left."""

    knn: KnnResult
    """Of the trained encoder: held-out images against those learned from."""
    raw_pixels: float
    """kNN accuracy of the centred pixels themselves, in percent, by the same protocol."""
    untrained: float
    """kNN accuracy of the encoder before its first step, in percent, by the same protocol."""
    sheet: pathlib.Path
    """Contact sheet: held-out images and their nearest neighbours."""
    classes: int
    """Number of classes; chance is 100 / classes percent."""


class Demo:
    """The steps of the demo; each one shows the command that it stands for through `say`."""

    def __init__(self, config: DemoConfig, say: Callable[[str], None]):
        self.config, self.say = config, say
        self.places = Workspace(config.workspace)
        images = self.places.root / IMAGES / f"{config.images}-seed{config.seed}"
        self.train, self.test = images / "train", images / "test"
        self.queries = self.places.root / "test.h5"

    def run(self, watcher: Watcher) -> DemoResult:
        """Generate, pretrain, embed, index, search and measure.

        Raises `UsageError` when the workspace holds anything but an earlier demo, which would be overwritten.
        """
        root = self.places.root
        if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not (root / IMAGES).is_dir())):
            raise UsageError(f"--workspace {root}: holds other files. Give a new folder.")
        held_out = self.config.images // 6
        self.say(f"# {self.config.images} generated images to learn from, {held_out} held out")
        write_collection(self.train, self.config.images, self.config.seed)
        write_collection(self.test, held_out, self.config.seed, first=self.config.images)
        training = self._pretrain(watcher)
        self._embed(self.train, None)
        self._embed(self.test, self.queries)
        self._say("index")
        build_index(IndexConfig(workspace=str(self.places.root)))
        sheet = self._search()
        self._say(f"knn {self.places.embeddings} {self.queries} -k {K}")
        knn = knn_accuracy(KnnConfig(str(self.places.embeddings), str(self.queries), str(self.places.root), k=(K,),
                                     temperature=(TEMPERATURE,), baselines=False))
        return DemoResult(knn, self._raw_pixels(), self._untrained(training), sheet, len(scan(self.test).label_names))

    def _say(self, command: str):
        self.say(f"$ mocoembed {command} --workspace {self.places.root}")

    def training(self) -> PretrainConfig:
        """The pretraining that the demo runs."""
        epochs = {} if self.config.epochs is None else {"epochs": self.config.epochs}
        return PretrainConfig.of("small", str(self.train), workspace=str(self.places.root), seed=self.config.seed,
                                 processes=1, **epochs)

    def _pretrain(self, watcher: Watcher) -> PretrainConfig:
        training = self.training()
        self._say(f"pretrain {self.train} --recipe small --epochs {training.epochs} --seed {training.seed}")
        pretrain(training, watcher)
        return training

    def _embed(self, folder: pathlib.Path, output: pathlib.Path | None, encoder: pathlib.Path | None = None):
        if encoder is None:
            self._say(f"embed {folder}" + (f" --output {output}" if output else "") + " --fresh")
        embed_images(EmbedConfig((str(folder),), str(self.places.root), None if encoder is None else str(encoder),
                                 None if output is None else str(output), fresh=True))

    def _search(self) -> pathlib.Path:
        sheet = self.places.root / "hits.png"
        by_class = scan(self.test).label_names
        queries = tuple(str(sorted((self.test / name).iterdir())[0]) for name in by_class[:QUERIES_ON_THE_SHEET])
        self._say(f"search {' '.join(queries)} -k 8 --sheet {sheet}")
        contact_sheet(search_images(SearchConfig(queries, str(self.places.root), k=8)), sheet)
        return sheet

    def _untrained(self, training: PretrainConfig) -> float:
        """Accuracy of the same network with the weights that pretraining began with."""
        folder = self.places.root / "untrained"
        compute = Compute.of("cpu", "fp32")
        method = set_up(training, compute, len(scan(self.train))).method
        encoder, bank, queries = (folder / name for name in ("encoder.safetensors", "train.h5", "test.h5"))
        save_encoder(encoder, frozen_encoder(method.encoder_q.state_dict(), training, {"epochs": 0}))
        self._embed(self.train, bank, encoder)
        self._embed(self.test, queries, encoder)
        result = knn_accuracy(KnnConfig(str(bank), str(queries), str(folder), k=(K,), temperature=(TEMPERATURE,),
                                        baselines=False))
        return result.scores[0].top1

    def _raw_pixels(self) -> float:
        bank, queries = (scan(folder) for folder in (self.train, self.test))
        vectors, labels = zip(*(pixel_vectors(listing) for listing in (bank, queries)))
        predicted, = classify(vectors[1], vectors[0], labels[0], [(K, TEMPERATURE)])
        return accuracy(predicted, labels[1]).top1


def pixel_vectors(listing: Listing, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 3 size^2) pixels minus their mean, of unit length, and labels (N,): the baseline without any encoder."""
    transform = EvaluationTransform(size, size, (0.0,) * 3, (1.0,) * 3)
    pixels = torch.cat([batch.pixels for batch in evaluation_batches(listing, transform, 256)]).flatten(1).float()
    vectors = functional.normalize(pixels - pixels.mean(dim=1, keepdim=True), dim=1)
    return vectors, torch.from_numpy(listing.labels).long()
