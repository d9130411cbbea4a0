"""Baselines of an evaluation on folders of images: what needs no trained encoder, from the same images and labels.

In: the images of both sides and the encoder that was measured. Out: for each baseline its measures. Features of whole
images, resized and cropped as in a test, are classified by logistic regression as in `mocoembed linear`, for the same
seeds: to train them as the encoder was trained, on crops, would take as long as the encoder.
"""

import dataclasses

import numpy as np
import torch
from torch.nn import functional

from mocoembed.config import FinetuneConfig, LinearConfig, ProbeConfig
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.errors import CollectionError
from mocoembed.evaluate.baselines import AUTOMATIC, CHEAP, FEATURES, TOO_SLOW, WIDEST
from mocoembed.evaluate.labelled import Encoded, LabelledImages, encoded
from mocoembed.evaluate.linear import measure, values_of
from mocoembed.evaluate.measures import Measured
from mocoembed.evaluate.pixels import SIZE
from mocoembed.evaluate.sides import Side
from mocoembed.evaluate.untrained import SEED, random_encoder
from mocoembed.memory import within_memory
from mocoembed.model.cost import multiplications
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.precision import Compute

FOR_SINGLE_IMAGES = (1e-2,)  # the penalty, where no class has a second image to choose one on

Found = dict[str, dict[str, Measured]]


def image_baselines(train: LabelledImages, test: LabelledImages, frozen: FrozenEncoder,
                    config: ProbeConfig | FinetuneConfig, seeds: int) -> tuple[Found, list[str]]:
    """Name -> measures of raw pixels, colour histogram, HOG and the same architecture untrained; what to say of others.

    `config.baselines`: `None` reads up to `AUTOMATIC` images, and encodes them if that takes seconds. Images that
    cannot be read are left out.
    """
    count = len(train) + len(test)
    if config.baselines is False:
        return {}, []
    if config.baselines is None and count > AUTOMATIC:
        return {}, [f"no baselines: {count} images would have to be read; give --baselines"]
    try:
        return _measured(train, test, frozen, config, seeds)
    except CollectionError as error:  # too few images of a class can be read
        return {}, [f"no baselines: {error}"]


def _measured(train: LabelledImages, test: LabelledImages, frozen: FrozenEncoder,
              config: ProbeConfig | FinetuneConfig, seeds: int) -> tuple[Found, list[str]]:
    count = len(train) + len(test)
    with within_memory("The baselines", count * WIDEST * 9):  # pixels, and twice their float32 vectors
        small = EvaluationTransform(SIZE, SIZE, (0.0,) * 3, (1.0,) * 3, value_range=frozen.transform.value_range)
        shown = [encoded(side, small, lambda pixels: pixels, config.workers) for side in (train, test)]
        pixels = [one.vectors.permute(0, 2, 3, 1).numpy() for one in shown]  # N x S x S x 3
        found = {name: learned(train, test, shown, [torch.from_numpy(features(one)) for one in pixels], config, seeds)
                 for name, features in FEATURES.items()}
    if config.baselines is None and multiplications(frozen.encoder.spec, frozen.transform.crop) * count > CHEAP:
        return found, [TOO_SLOW]
    random = random_encoder(frozen.encoder.spec, frozen.transform, SEED)
    embed = Embedder(random, Compute.of(config.device, "fp32"), "backbone", normalized=True)
    shown = [encoded(side, random.transform, embed, config.workers) for side in (train, test)]
    return {**found, "untrained encoder": learned(train, test, shown, [one.vectors for one in shown], config,
                                                  seeds)}, []


def learned(train: LabelledImages, test: LabelledImages, shown: list[Encoded], vectors: list[torch.Tensor],
            config: ProbeConfig | FinetuneConfig, seeds: int) -> dict[str, Measured]:
    """The measures of logistic regression on features (N, D) and (Q, D) of both sides."""
    bank, queries = (_side(images, one.readable, found) for images, one, found in zip((train, test), shown, vectors))
    asked = LinearConfig(labels=config.labels, seeds=seeds, seed=config.seed,
                         metric=config.metric if isinstance(config, ProbeConfig) else "top1")
    try:
        return values_of(*measure(bank, queries, asked))
    except CollectionError:
        return values_of(*measure(bank, queries, dataclasses.replace(asked, penalty=FOR_SINGLE_IMAGES)))


def _side(images: LabelledImages, readable: np.ndarray, vectors: torch.Tensor) -> Side:
    """The images that could be read, with these vectors."""
    kept = images.only(readable)
    return Side(images.path, "", "backbone", {}, functional.normalize(vectors[torch.from_numpy(readable)], dim=1),
                kept.names, 0, np.arange(len(kept)), kept.digests, np.arange(len(kept)), True)
