"""The settings of every command but `pretrain`."""

import math
from dataclasses import dataclass

from mocoembed.checks import (
    at_least,
    at_most,
    one_of,
    option_name,
    relative_globs,
    require,
    rising_pair,
    standard_input_once,
)
from mocoembed.config.pretrain import DEFAULT_WORKSPACE, PRECISIONS
from mocoembed.errors import UsageError

FEATURES = ("backbone", "projection")
EXPORT_FORMATS = ("encoder", "torchvision", "detectron2", "onnx")
CONVERT_FORMATS = ("npy", "parquet", "csv", "h5")


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `mocoembed export` needs."""

    source: str | None = None
    """Checkpoint, run folder, encoder file, weights file of another library, published name, or torchvision:NAME or
    timm:NAME (with =FILE for fine-tuned weights); by default, the newest run."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    format: str = "encoder"
    """Format to write: encoder (for mocoembed), torchvision, detectron2 or onnx (these three: backbone only)."""
    output: str | None = None
    """File to write; by default, a name made from the encoder's fingerprint, in the workspace."""
    fresh: bool = False
    """Replace the output file if it exists."""
    image_size: int | None = None
    """Weights of another library: side length of the images in pixels; by default, 224 for a 7x7 stem, 32 for 3x3."""
    mean: tuple[float, ...] = ()
    """Weights of another library: mean of the pixels (red, green, blue; 0 to 1); by default, ImageNet or CIFAR-10."""
    std: tuple[float, ...] = ()
    """Weights of another library: standard deviation of the pixels; by default, ImageNet or CIFAR-10."""

    def __post_init__(self):
        one_of(self, "format", EXPORT_FORMATS)
        at_least(self, 8, "image_size")
        require(self, "mean", len(self.mean) in (0, 3), "three numbers")
        require(self, "std", len(self.std) in (0, 3) and min(self.std, default=1) > 0, "three numbers above 0")


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that `mocoembed embed` needs."""

    collections: tuple[str, ...]
    """Folders (searched recursively), list files (.txt, .csv, .tsv, .jsonl), tar shards ('shard-{000..009}.tar') or
    images; a single one may be given as a string."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    encoder: str | None = None
    """Encoder file, run folder, weights file of another library, published name, or torchvision:NAME or timm:NAME
    (with =FILE for fine-tuned weights); by default, the workspace's newest encoder."""
    output: str | None = None
    """Embeddings file to write; by default, embeddings.h5 in the workspace."""
    fresh: bool = False
    """Embed everything again: replace a file of other collections, encoder or settings, and delete unfinished work."""
    root: str | None = None
    """Folder where the collection is now, if it has moved since its list was written or its embeddings were made."""
    exclude: tuple[str, ...] = ()
    """Exclude files and folders that match this glob: by name, or by path if it has a slash. May be given again."""
    features: str = "backbone"
    """Vectors to store: backbone, or projection (output of the projection head, which the loss compares)."""
    normalize: bool = True
    """Scale every vector to unit length, so that the inner product is the cosine similarity."""
    labels: str = "parent"
    """Label of an image: parent (its folder's name), first (the first folder below the root) or none. Labels in a list
    file or in shards take precedence over folders, except with none."""
    full_decode: bool = False
    """Decode JPEG files at full size instead of the smallest scale of the decoder that is large enough."""
    value_range: tuple[float, ...] = ()
    """LOW,HIGH: map 16-bit, 32-bit and floating-point pixels from LOW..HIGH to 0..255; by default, the encoder's range,
    or the whole range of the pixel type. Queries are decoded in the same way."""
    batch_size: int = 64
    """Images per batch."""
    workers: int | None = None
    """Loading processes that decode; by default, by the number of cores; 0: none."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N."""
    precision: str = "fp32"
    """Precision of the encoder: fp64, fp32, tf32, bf16 or fp16."""
    dtype: str = "float32"
    """Type of the numbers in the file: float32, or float16 (half the size, about three significant digits)."""
    compile: bool = False
    """Compile the encoder with torch.compile: a slow start, then faster on GPUs."""
    processes: int | None = None
    """Processes on this machine; by default, one per GPU, or one on a CPU. Not used under torchrun and
    srun."""
    timeout: float = 600.0
    """Timeout in seconds: how long a process waits for the others before the job is ended."""

    def __post_init__(self):
        if isinstance(self.collections, str):
            object.__setattr__(self, "collections", (self.collections,))
        if not self.collections:
            raise UsageError("No collection to embed. Give one or more: mocoembed embed COLLECTION...")
        rising_pair(self, "value_range")
        relative_globs(self, "exclude")
        one_of(self, "features", FEATURES)
        one_of(self, "labels", ("parent", "first", "none"))
        one_of(self, "precision", PRECISIONS)
        one_of(self, "dtype", ("float32", "float16"))
        at_least(self, 1, "batch_size", "processes")
        at_least(self, 0, "workers")
        require(self, "timeout", self.timeout > 0, "more than 0")


@dataclass(frozen=True)
class SearchConfig:
    """Everything that `mocoembed search` needs."""

    images: tuple[str, ...] = ()
    """Query images: files, folders (searched recursively), or - for one image on standard input."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    index: str | None = None
    """Index file; by default, embeddings.faiss in the workspace. Without one, a small collection is compared image by
    image."""
    embeddings: str | None = None
    """Embeddings file that the index was built from; by default, the one named in the index."""
    encoder: str | None = None
    """Encoder, as for embed; by default, the one that made the embeddings, from the workspace."""
    k: int = 10
    """Number of hits per query."""
    root: str | None = None
    """Where the collection's images are now, if they have moved."""
    device: str = "auto"
    """Device to compute on: auto, cpu, cuda or cuda:N. A GPU that is named embeds the queries and compares them; with
    auto, the CPU compares."""
    recall: float | None = None
    """Recall@10 to search with, on the curve that was measured when the index was built; by default, the --recall it
    was built for."""
    torch: bool = False
    """Embed the queries by torch instead of ONNX Runtime, which takes seconds to load; with --device cuda, it is used
    anyway."""
    label: tuple[str, ...] = ()
    """Only hits with this label; '' is no label. May be given again: with any of the labels."""
    not_label: tuple[str, ...] = ()
    """No hits with this label. May be given again: with none of the labels."""
    path: tuple[str, ...] = ()
    """Only hits whose path matches this glob, compared as by --exclude: by the name of a file or folder, or by path if
    it has a slash. May be given again: any of the globs."""
    min_score: float | None = None
    """Only hits with this score or more."""
    row: tuple[int, ...] = ()
    """Query by an image of the collection, given by its row (see the JSON or CSV output). May be given again."""
    together: bool = False
    """Combine all queries into one: the mean of their vectors."""
    unlike: tuple[str, ...] = ()
    """Image that hits should be unlike: its vector is subtracted from the query's. May be given again: their mean."""
    crop: tuple[int, ...] = ()
    """X,Y,WIDTH,HEIGHT: query by this region of every IMAGE, in pixels of the upright image from the top left."""
    exclude_self: bool = False
    """Leave out the query itself: the images with the same bytes, and the row of --row."""
    unique: bool = False
    """Fold near-duplicates of a hit into it, and print their number. The threshold is that of `mocoembed
    duplicates`."""
    diverse: bool = False
    """Choose hits that are near to the query and unlike each other (maximal marginal relevance)."""
    server: str | None = None
    """Address of a running `mocoembed serve`, to search the collection there; by default, search on this machine."""

    def __post_init__(self):
        at_least(self, 1, "k")
        if not self.images and not self.row:
            raise UsageError("No query image. Give one or more: mocoembed search IMAGE...")
        standard_input_once(*self.images, *self.unlike)
        relative_globs(self, "path")
        require(self, "row", min(self.row, default=0) >= 0, "0 or more")
        require(self, "recall", self.recall is None or 0 < self.recall <= 1, "above 0 and at most 1")
        require(self, "min_score", self.min_score is None or abs(self.min_score) < math.inf, "a number")
        require(self, "crop", not self.crop or (len(self.crop) == 4 and min(self.crop) >= 0 < min(self.crop[2:])),
                "four numbers X,Y,WIDTH,HEIGHT of pixels")
        require(self, "crop", not self.crop or bool(self.images), "used with an IMAGE; it does not apply to --row")


@dataclass(frozen=True)
class ConvertConfig:
    """Everything that `mocoembed convert` needs."""

    source: str | None = None
    """Embeddings file, or a .npy file of vectors; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    to: str | None = None
    """Format to write: npy (vectors, and a list of paths beside them), parquet or csv; h5 for a .npy file."""
    output: str | None = None
    """File to write; by default, beside the source, with the format's extension."""
    fresh: bool = False
    """Replace the output if it exists."""
    root: str | None = None
    """Where the collection's images are now, if they have moved; for a .npy file, the folder that paths are made
    relative to."""
    paths: str | None = None
    """For a .npy file: list (.txt, .csv, .tsv, .jsonl) of the paths, and optionally labels, one per vector in order;
    by default, NAME-paths.csv beside it."""
    made_by: str | None = None
    """For a .npy file: name of the encoder that made the vectors; knn compares only files with the same name."""
    text_ids: bool = False
    """For parquet: id and mtime_ns as text, for viewers in the browser, where numbers have 53 bits."""
    thumbnails: bool = False
    """For parquet: add a column image with thumbnails: JPEG files of 320 pixels, as in Hugging Face's datasets."""

    def __post_init__(self):
        require(self, "to", self.to in (None, *CONVERT_FORMATS), "one of " + ", ".join(CONVERT_FORMATS))
        for name in ("text_ids", "thumbnails"):
            if getattr(self, name) and self.to != "parquet":
                raise UsageError(f"{option_name(name)}: is for --to parquet.")


@dataclass(frozen=True)
class DuplicatesConfig:
    """Everything that `mocoembed duplicates` needs."""

    embeddings: str | None = None
    """Embeddings file; by default, embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder that holds the results of every command, where the next command finds them."""
    threshold: float | str = "auto"
    """Least cosine similarity of two near-duplicates; auto chooses it from the similarities in this collection,
    because they depend on the encoder."""
    exact_only: bool = False
    """Find only files with the same bytes; vectors are not compared."""
    index: str | None = None
    """Index file of the embeddings to find near-duplicates by, for large collections. An approximate one may miss some,
    and says how many of the nearest neighbours it finds."""
    root: str | None = None
    """Where the collection's images are now, if they have moved."""
    device: str = "cpu"
    """Device to compare vectors on: cpu, cuda or cuda:N. A GPU compares all pairs, however many there are."""

    def __post_init__(self):
        require(self, "threshold", self.threshold == "auto" if isinstance(self.threshold, str)
                else 0 < self.threshold <= 1, "auto, or a number above 0 and at most 1")
        if self.exact_only and self.index is not None:
            raise UsageError("--index: bytes are compared without an index. Leave out --index or --exact-only.")


@dataclass(frozen=True)
class InfoConfig:
    """Everything that `mocoembed info` needs."""

    path: str
    """A checkpoint, run folder, encoder, embeddings or index file."""
    verify: bool = False
    """Recompute and compare every hash."""


@dataclass(frozen=True)
class DemoConfig:
    """Everything that `mocoembed demo` needs."""

    workspace: str = "demo-workspace"
    """Folder for the generated images and all results: new, empty or from an earlier demo."""
    images: int = 2400
    """Number of generated training images; a sixth as many held-out images are generated."""
    epochs: int | None = None
    """Passes over the images; by default, as in the recipe."""
    seed: int = 0
    """Random seed for the images and the pretraining."""

    def __post_init__(self):
        at_least(self, 1, "epochs")
        at_least(self, 0, "seed")
        at_most(self, 2**63 - 1, "seed")
        at_least(self, 160, "images")
