"""Labelled images on the training machinery: a collection -> what is learned from and what is tested on.

In: a folder with a folder for each class, a list or tar shards. Out: `LabelledImages`, which `split` takes apart
(stratified by label, copies of an image kept together), `training_batches` shows augmented in an order that is counted
by the seed, and `encoded` shows to an encoder once, as it is tested.

    images = labelled_images("photos/train", "TRAIN")
    learned, held_out = split(images, 0.2, seed)
    how = Augmentation.of(frozen.transform, seed=0, batch_size=256, epochs=100)
    for batch in training_batches(learned, how, step, workers, pin):       # from that step on, to the last epoch
        x = augmented(batch, how, device)                                  # (N, 3, S, S)
        y = learned.classes(batch.rows, known)                             # (N,) int64
    found = encoded(held_out, frozen.transform, embedder, workers)          # (n, D), and which could be read
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from mocoembed.config import FinetuneConfig, ProbeConfig
from mocoembed.cores import cores
from mocoembed.data.augmentation import Augmentation
from mocoembed.data.evaluation import EvaluationTransform
from mocoembed.data.facts import REPLACED, UNKNOWN, Failure
from mocoembed.data.images import NO_LABEL, Listing, scan
from mocoembed.data.loader import Places, ViewBatch, evaluation_batches, view_batches, worker_count
from mocoembed.data.workers import Batches
from mocoembed.embed.store_writer import stable_ids
from mocoembed.errors import CollectionError
from mocoembed.evaluate.folds import few_labels_notes, few_of_each, held_out, same_image
from mocoembed.evaluate.sides import Overlap, Side, overlap, shared_bytes
from mocoembed.evaluate.stored import fits
from mocoembed.knn import neighbours
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.notes import say_nothing
from mocoembed.train.guard import UNREADABLE_SHARE

AT_A_TIME = 64  # images that are tested together
TEST_SHARE = 0.2  # of the images, where no test images are given
ONE_FOLDER_EACH = "Put the images into one folder per class."


@dataclass(frozen=True)
class LabelledImages:
    """The labelled images of a collection, each with the digest of its bytes."""

    path: pathlib.Path
    """What was given: a folder, a list, shards."""
    listing: Listing
    names: list[str]
    """(N,) the label of each."""
    digests: np.ndarray
    """(N,) V32: SHA-256 of each image's bytes; zeros where it cannot be read."""
    unlabelled: int
    """Images left out because they have no label."""

    def __len__(self):
        return len(self.names)

    def only(self, wanted: np.ndarray) -> "LabelledImages":
        """The images where `wanted` (N,) bool is true."""
        return dataclasses.replace(
            self, listing=self.listing.subset(np.flatnonzero(wanted).tolist()), digests=self.digests[wanted],
            names=[name for name, one in zip(self.names, wanted) if one])

    @property
    def groups(self) -> np.ndarray:
        """(N,) int64: equal for images with the same bytes."""
        return same_image(self.digests)

    @property
    def identity(self) -> str:
        """SHA-256 of paths, labels and bytes, for a result."""
        digest = hashlib.sha256(self.listing.digest().encode())
        digest.update("\0".join(self.names).encode())
        digest.update(self.digests.tobytes())
        return digest.hexdigest()

    def classes(self, rows, known: list[str]) -> torch.Tensor:
        """(n,) int64: the place of each row's label in `known`, which has them all."""
        place = {name: number for number, name in enumerate(known)}
        return torch.tensor([place[self.names[row]] for row in rows], dtype=torch.int64)

    def side(self, vectors: torch.Tensor, frozen: FrozenEncoder) -> Side:
        """The images as the side of a result; `vectors` (N, D) are their backbone features, of length 1."""
        encoder = {"fingerprint": frozen.fingerprint(), "provenance": frozen.provenance}
        return Side(self.path, self.identity, "backbone", encoder, vectors, self.names, self.unlabelled,
                    np.arange(len(self)), self.digests, stable_ids(list(self.listing.paths)), False)


def labelled_images(collection: str, what: str, note: Callable[[str], None] = say_nothing,
                    exclude: tuple[str, ...] = ()) -> LabelledImages:
    """The labelled images of a collection; `what` names it in an error, such as TRAIN.

    `note(text)` is told what has been left out. Raises `UsageError` when it does not exist, `CollectionError` when no
    image has a label.
    """
    listing = scan(collection, what=what, note=note, exclude=exclude)
    wanted = listing.labels != NO_LABEL
    if not wanted.any():
        raise CollectionError(f"{what} {collection}: none of its {len(listing)} images has a label. {ONE_FOLDER_EACH}")
    if unlabelled := int((~wanted).sum()):
        note(f"skipped {unlabelled} images of {collection} without a label")
        listing = listing.subset(np.flatnonzero(wanted).tolist())
    names = [listing.label_names[number] for number in listing.labels.tolist()]
    return LabelledImages(pathlib.Path(collection), listing, names, digests_of(listing), unlabelled)


def both_sides(config: ProbeConfig | FinetuneConfig, what: str,
               note: Callable[[str], None]) -> tuple[LabelledImages, LabelledImages]:
    """The images that may be learned from and those to test on, which share no image where both are parts of TRAIN.

    `what` needs them, for an error. Raises what `labelled_images` and `require_comparable` raise.
    """
    assert config.train is not None  # the config has checked it
    train = labelled_images(config.train, "TRAIN", note, config.exclude)
    if config.test is None:
        require_comparable(train, None, what)
        train, test = split(train, TEST_SHARE, config.seed)
    else:
        test = labelled_images(config.test, "TEST", note, config.exclude)
        require_comparable(train, test, what)
    for text in few_labels_notes(train.names, config.labels):
        note(text)
    return train, test


def digests_of(listing: Listing) -> np.ndarray:
    """(N,) V32: SHA-256 of every image's bytes, read by several threads; zeros where it cannot be read."""
    def digest(row: int) -> bytes:
        try:
            return hashlib.sha256(listing.read(row)[0]).digest()
        except Exception:  # the pass over the images says why
            return UNKNOWN

    with ThreadPoolExecutor(2 * cores()) as threads:
        return np.array(list(threads.map(digest, range(len(listing)))), f"V{len(UNKNOWN)}")


def require_comparable(train: LabelledImages, test: LabelledImages | None, what: str):
    """Raise `CollectionError` for a single class, or for classes of TEST that TRAIN does not have."""
    learned = set(train.names)
    if len(learned) < 2:
        raise CollectionError(f"{train.path} has one class, {train.names[0]!r}; {what} needs two or more. "
                              f"{ONE_FOLDER_EACH}")
    if test is not None and (unknown := sorted(set(test.names) - learned)):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise CollectionError(f"{test.path} has the class {unknown[0]!r}{more}, of which {train.path} has no image. "
                              f"Labels are compared by name; it has {', '.join(map(repr, sorted(learned)[:5]))}"
                              f"{' ...' if len(learned) > 5 else ''}.")


def split(images: LabelledImages, share: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Without, and the held-out `share` of every class alone: by seed, copies of an image on one side.

    Raises `CollectionError` when every class has a single image.
    """
    apart = held_out(images.names, images.groups, share, seed)
    return images.only(~apart), images.only(apart)


def with_few_labels(images: LabelledImages, labels: str | None, seed: int) -> LabelledImages:
    """Those whose labels are used: `labels` is `10%`, `5-per-class`, or `None` for all; by seed."""
    return images if labels is None else images.only(few_mask(images, labels, seed))


def few_mask(images: LabelledImages, labels: str | None, seed: int) -> np.ndarray:
    """(N,) bool: those of `with_few_labels`."""
    if labels is None:
        return np.ones(len(images), bool)
    return few_of_each(images.names, images.groups, labels, seed)


def training_batches(images: LabelledImages, how: Augmentation, step: int, workers: int | None, pin: bool) -> Batches:
    """One view of every image in every epoch, in random order, from `step` on: `ViewBatch`es.

    They depend on the seed, the step and the images alone, so a run that goes on sees what it would have seen. An
    unreadable image is replaced by the next one, and named in `failures`: `rows` are those that were seen.
    """
    places = Places(len(images), how, step)
    return view_batches(images.listing, how, places, worker_count(workers, len(images)), pin)


def require_readable(batch: ViewBatch, images: LabelledImages, known: set[int], note: Callable[[str], None]):
    """Name the images of a batch that cannot be read, each once; `known` are the rows of those that were named.

    Raises `CollectionError` when they are more than a tenth, or when nothing stands in for one.
    """
    for failure in batch.failures:
        if failure.row not in known:
            known.add(failure.row)
            note(failure.told(images.listing.full_path(failure.row), REPLACED))
    if int(batch.rows.min()) < 0 or len(known) > UNREADABLE_SHARE * len(images):
        raise CollectionError(f"{len(known)} of the {len(images)} images to learn from cannot be read, more than "
                              f"{UNREADABLE_SHARE:.0%} or too many in a row. Repair or remove them; they are named "
                              "above.")


@dataclass(frozen=True)
class Encoded:
    """What an encoder made of every image, seen as in a test."""

    vectors: torch.Tensor
    """(N, D) on the CPU; zeros where the image cannot be read."""
    readable: np.ndarray
    """(N,) bool."""
    failures: list[Failure]

    def notes(self, images: LabelledImages) -> list[str]:
        """A line for every image that cannot be read."""
        return [one.told(images.listing.full_path(one.row), "left out") for one in self.failures]


def encoded(images: LabelledImages, transform: EvaluationTransform, encode: Callable[[torch.Tensor], torch.Tensor],
           workers: int | None, progress: Callable[[int], None] = lambda count: None) -> Encoded:
    """Show every image once, resized and cropped, in order; `encode` makes (n, D) of pixels (n, 3, S, S) uint8.

    `progress(n)` is called after every batch of n images. Raises `CollectionError` when none can be read.
    """
    readable, parts, failures = np.ones(len(images), bool), [], []
    for batch in evaluation_batches(images.listing, transform, AT_A_TIME, workers):
        readable[[failure.row for failure in batch.failures]] = False
        failures += batch.failures
        parts.append(encode(batch.pixels).cpu())
        progress(len(batch.facts))
    if not readable.any():
        raise CollectionError(f"None of the {len(images)} images of {images.path} can be read. The first: "
                              f"{failures[0].said}.")
    vectors = torch.cat(parts)
    vectors[torch.from_numpy(~readable)] = 0
    return Encoded(vectors, readable, failures)


def features_fit(count: int, dimension: int) -> bool:
    """Whether the features of so many training images fit into memory, to find copies of test images by them."""
    return fits(8 * count * dimension, torch.device("cpu"))


def found_overlap(train: Side, test: Side, known: bool) -> Overlap:
    """Test images that are among the training images; near-duplicates only where the vectors of those are `known`."""
    if not known:
        same = shared_bytes(test, train, False)
        return Overlap(int(same.sum()), None, None, True)
    nearest = torch.cat([piece[:, 0].cpu() for piece, _ in neighbours(test.vectors, train.vectors, 1)])
    return overlap(test, train, False, nearest.numpy())
