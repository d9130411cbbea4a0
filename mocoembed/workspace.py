"""Where in the workspace folder each result lies, the paths that scripts may rely on; and the cache folder."""

import os
import pathlib

from mocoembed.errors import UsageError
from mocoembed.files import require_file

CACHE_VARIABLE = "MOCOEMBED_CACHE"


def cache_folder() -> pathlib.Path:
    """Where downloads are kept: $MOCOEMBED_CACHE, or `mocoembed` in the user's cache folder."""
    if given := os.environ.get(CACHE_VARIABLE):
        return pathlib.Path(given)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "mocoembed"


class Workspace:
    """Paths in the workspace folder `root`. Nothing is made on disk by asking."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.runs = self.root / "runs"
        self.encoders = self.root / "encoders"
        self.newest_encoder = self.root / "encoder.safetensors"
        self.finetunings = self.root / "finetune"
        self.probes = self.root / "linear"
        self.baselines = self.root / "baselines"
        self.classifiers = self.root / "classifiers"
        self.newest_classifier = self.root / "classifier.safetensors"
        self.embeddings = self.root / "embeddings.h5"
        self.index = self.root / "embeddings.faiss"

    def encoder(self, given: str | None) -> pathlib.Path:
        """The encoder file `given`, or the newest of the workspace; `UsageError` when there is none."""
        make_it = "mocoembed pretrain IMAGES" + ("" if given else ", or give a file or a name with --encoder")
        return require_file(given or self.newest_encoder, "The encoder", make_it)

    def encoder_of(self, fingerprint: str) -> pathlib.Path:
        """Where the encoder with that fingerprint is kept."""
        return self.encoders / f"{fingerprint}.safetensors"

    def graph_of(self, fingerprint: str) -> pathlib.Path:
        """Where the graph of that encoder is kept, by which `search` does without torch."""
        return self.encoders / f"{fingerprint}.query.onnx"

    def classifier(self, given: str | None) -> pathlib.Path:
        """The classifier file `given`, or the newest of the workspace; `UsageError` when there is none."""
        return require_file(given or self.newest_classifier, "The classifier", "mocoembed finetune TRAIN")

    def classifier_of(self, fingerprint: str) -> pathlib.Path:
        """Where the classifier with that fingerprint is kept; its graph beside it, with the suffix .onnx."""
        return self.classifiers / f"{fingerprint}.safetensors"

    def embeddings_file(self, given: str | None) -> pathlib.Path:
        """The embeddings file `given`, or the workspace's; `UsageError` when there is none."""
        return require_file(given or self.embeddings, "The embeddings file", "mocoembed embed FOLDER")

    def index_file(self, given: str | None) -> pathlib.Path:
        """The index file `given`, or the workspace's; `UsageError` when there is none."""
        return require_file(given or self.index, "The index", "mocoembed index")

    def newest_run(self) -> pathlib.Path:
        """The run folder whose checkpoint was written last; `UsageError` when there is none."""
        manifests = sorted(self.runs.glob("*/checkpoint.json"), key=lambda path: path.stat().st_mtime_ns)
        if not manifests:
            raise UsageError(f"No run with a checkpoint in {str(self.runs)!r}. "
                             "Make one with: mocoembed pretrain IMAGES")
        return manifests[-1].parent
