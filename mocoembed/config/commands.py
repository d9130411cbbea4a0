"""The settings of every command but `pretrain`."""

from dataclasses import dataclass

from mocoembed.checks import at_least, at_most, one_of, relative_globs, require, rising_pair
from mocoembed.config.pretrain import DEFAULT_WORKSPACE, PRECISIONS
from mocoembed.errors import UsageError
from mocoembed.recipes import KNN_PRESETS

FEATURES = ("backbone", "projection")
EXPORT_FORMATS = ("encoder", "torchvision", "detectron2", "onnx")
INDEX_TYPES = ("auto", "flat")
CONVERT_FORMATS = ("npy", "parquet", "csv", "h5")


@dataclass(frozen=True)
class ExportConfig:
    """Everything that `mocoembed export` needs."""

    source: str | None = None
    """Checkpoint, run folder, encoder file, weights of others, a known name, torchvision:NAME or timm:NAME, with
    =FILE for weights of one's own; by default the newest run."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    format: str = "encoder"
    """What to write: encoder (for this tool), torchvision, detectron2 or onnx (backbone only)."""
    output: str | None = None
    """File to write; by default a name made from the encoder's fingerprint, in the workspace."""
    fresh: bool = False
    """Replace the file of --output if it exists."""
    image_size: int | None = None
    """For weights of others: side of the images in pixels; by default 224 for a 7x7 stem, 32 for a 3x3 one."""
    mean: tuple[float, ...] = ()
    """For weights of others: mean of the pixels (red, green, blue; 0 to 1); by default ImageNet's or CIFAR-10's."""
    std: tuple[float, ...] = ()
    """For weights of others: standard deviation of the pixels; by default ImageNet's or CIFAR-10's."""

    def __post_init__(self):
        one_of(self, "format", EXPORT_FORMATS)
        at_least(self, 1, "image_size")
        require(self, "mean", len(self.mean) in (0, 3), "three numbers")
        require(self, "std", len(self.std) in (0, 3) and min(self.std, default=1) > 0, "three numbers above 0")


@dataclass(frozen=True)
class EmbedConfig:
    """Everything that `mocoembed embed` needs."""

    collections: tuple[str, ...]
    """Folders (searched recursively), list files (.txt, .csv, .tsv, .jsonl), tar shards ('shard-{000..009}.tar'),
    images; one of them may also be given as it is."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    encoder: str | None = None
    """Encoder file, run folder, weights of others, a known name, torchvision:NAME or timm:NAME, with =FILE for
    weights of one's own; by default the workspace's newest encoder."""
    output: str | None = None
    """Embeddings file to write; by default embeddings.h5 in the workspace."""
    fresh: bool = False
    """Embed everything anew: replaces a file of other collections, encoder or settings, drops unfinished work."""
    root: str | None = None
    """Where the collection is now, if it has moved since its list was written or its embeddings were made."""
    exclude: tuple[str, ...] = ()
    """Glob of files and folders to leave out, by name, or with a slash by path; may be given again."""
    features: str = "backbone"
    """Which vectors: backbone, or projection (the head's output, compared in training)."""
    normalize: bool = True
    """Scale every vector to length 1, so that an inner product is the cosine similarity."""
    labels: str = "parent"
    """Label of an image: parent (its folder's name), first (the first folder below the root) or none. With the first
    two, labels in a list file or in shards count before folders."""
    full_decode: bool = False
    """Decode JPEG files at full size, instead of at the smallest of the decoder's scales that is large enough."""
    value_range: tuple[float, ...] = ()
    """LOW,HIGH: 16-bit, 32-bit and floating-point pixels from LOW to HIGH become 0 to 255; by default the encoder's, or
    all that a pixel can hold. Queries are decoded in the same way."""
    batch_size: int = 64
    """Images in a batch."""
    workers: int | None = None
    """Processes that decode; by default chosen from the number of cores; 0: none."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""
    precision: str = "fp32"
    """Arithmetic of the encoder: fp64, fp32, bf16 or fp16."""
    dtype: str = "float32"
    """Numbers in the file: float32, or float16, which halves it and keeps three digits of each."""
    compile: bool = False
    """Compile the encoder with torch.compile: slow to start, faster on GPUs."""
    processes: int | None = None
    """Processes on this machine; by default one for each of its GPUs, or one on a CPU. Under torchrun: theirs."""
    timeout: float = 600.0
    """Seconds that a process waits for the others before the job ends."""

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
class IndexConfig:
    """Everything that `mocoembed index` needs."""

    embeddings: str | None = None
    """Embeddings file; by default embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    output: str | None = None
    """Index file to write; by default beside the embeddings file, with the extension .faiss."""
    fresh: bool = False
    """Replace an index of another embeddings file."""
    type: str = "auto"
    """Kind of index: auto or flat, both exact."""

    def __post_init__(self):
        one_of(self, "type", INDEX_TYPES)


@dataclass(frozen=True)
class SearchConfig:
    """Everything that `mocoembed search` needs."""

    images: tuple[str, ...]
    """Query images."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    index: str | None = None
    """Index file; by default embeddings.faiss in the workspace."""
    embeddings: str | None = None
    """Embeddings file that the index was built from; by default the one named in the index."""
    encoder: str | None = None
    """Encoder, as for embed; by default the one that made the embeddings, from the workspace."""
    k: int = 10
    """Number of hits per query."""
    root: str | None = None
    """Where the collection's images are now, if they have moved."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        at_least(self, 1, "k")
        if not self.images:
            raise UsageError("No query image. Give one or more: mocoembed search IMAGE...")


@dataclass(frozen=True)
class KnnConfig:
    """Everything that `mocoembed knn` needs."""

    bank: str | None = None
    """Embeddings file whose labelled images vote; by default embeddings.h5 in the workspace."""
    queries: str | None = None
    """Embeddings file of the images to classify; without it, leave-one-out on the bank."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    preset: str | None = None
    """Protocol: lightly (backbone, k 200, T 0.1), moco (projection, the same) or dino (backbone, four k, T 0.07).
    DINO's own code assumes 1,000 classes and, for k below 5, counts only k places for top-5; here the classes are the
    bank's, and five places count."""
    k: tuple[int, ...] = ()
    """Numbers k of nearest neighbours that vote, separated by commas; by default the preset's, or 200."""
    temperature: tuple[float, ...] = ()
    """Temperatures T of the vote's weights exp(s/T), separated by commas; by default the preset's, or 0.1."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        if self.preset is not None:
            one_of(self, "preset", tuple(KNN_PRESETS))
        require(self, "k", all(k >= 1 for k in self.k), "numbers of 1 or more")
        require(self, "temperature", all(t > 0 for t in self.temperature), "numbers above 0")


@dataclass(frozen=True)
class ConvertConfig:
    """Everything that `mocoembed convert` needs."""

    source: str | None = None
    """Embeddings file, or a .npy file of vectors; by default embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    to: str | None = None
    """Format to write: npy (vectors, and a list of paths beside them), parquet or csv; h5 for a .npy file."""
    output: str | None = None
    """File to write; by default beside the source, with the format's extension."""
    fresh: bool = False
    """Replace the output if it exists."""
    root: str | None = None
    """Where the collection's images are now, if they have moved; for a .npy file, the folder that paths are made
    relative to."""
    paths: str | None = None
    """For a .npy file: list (.txt, .csv, .tsv, .jsonl) of the paths, and optionally labels, one per vector in order;
    by default NAME-paths.csv beside it."""
    made_by: str | None = None
    """For a .npy file: name of the encoder that made the vectors; knn compares only files with the same name."""

    def __post_init__(self):
        require(self, "to", self.to in (None, *CONVERT_FORMATS), "one of " + ", ".join(CONVERT_FORMATS))


@dataclass(frozen=True)
class DuplicatesConfig:
    """Everything that `mocoembed duplicates` needs."""

    embeddings: str | None = None
    """Embeddings file; by default embeddings.h5 in the workspace."""
    workspace: str = DEFAULT_WORKSPACE
    """Folder in which every command leaves its results and finds those of the others."""
    threshold: float | str = "auto"
    """Least cosine similarity of two images that are near-duplicates; auto chooses it from how alike the images of
    this collection are, as that depends on the encoder."""
    exact_only: bool = False
    """Find only files with the same bytes; vectors are not compared."""
    root: str | None = None
    """Where the collection's images are now, if they have moved."""

    def __post_init__(self):
        require(self, "threshold", self.threshold == "auto" if isinstance(self.threshold, str)
                else 0 < self.threshold <= 1, "auto, or a number above 0, 1 at most")


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
    """Folder for the generated images and all results: new, empty, or from an earlier demo."""
    images: int = 2400
    """Number of generated training images; a sixth as many are generated to be held out."""
    epochs: int | None = None
    """Passes over the images; by default the recipe's."""
    seed: int = 0
    """Seed of the images and of the pretraining."""

    def __post_init__(self):
        at_least(self, 1, "epochs")
        at_least(self, 0, "seed")
        at_most(self, 2**63 - 1, "seed")
        at_least(self, 160, "images")
