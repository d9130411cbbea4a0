"""Fine-tuning with few labels: labelled images and an encoder -> a classifier, and how many test images it gets right.

Each seed learns from labels of its own; its classifier is kept in the run's folder as soon as it has learned, so a run
that is stopped goes on with the step of its newest checkpoint. The test images are looked at when all have learned.
The classifier of the first seed goes to the workspace, for `mocoembed classify`: none is chosen by its result.
"""

import pathlib
import time
from collections.abc import Callable

import numpy as np
import torch

from mocoembed.checks import to_dict
from mocoembed.config import FinetuneConfig
from mocoembed.errors import FormatError, UsageError
from mocoembed.evaluate.images.baselines import ImageBaselines
from mocoembed.evaluate.images.finetune_result import FinetuneResult, Repeat
from mocoembed.evaluate.images.finetuning import FineTuning, require_stages
from mocoembed.evaluate.images.frozen_backbone import require_finite
from mocoembed.evaluate.images.labelled import (
    Encoded,
    LabelledImages,
    both_sides,
    encoded,
    features_fit,
    few_mask,
    found_overlap,
    with_few_labels,
)
from mocoembed.evaluate.images.tally import Tally
from mocoembed.evaluate.sides import Overlap
from mocoembed.evaluate.untrained import random_encoder
from mocoembed.files import StopRequest, locked, read_json, sha256_json, write_bytes, write_json
from mocoembed.model.classifier_file import Classifier, load_classifier, save_classifier
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import FrozenEncoder
from mocoembed.model.graph_export import keep_classifier_graph
from mocoembed.model.precision import Compute
from mocoembed.notes import counted, say_nothing
from mocoembed.search.threshold import LEAST_ROWS
from mocoembed.train.checkpoint import delete_checkpoints
from mocoembed.train.export import open_encoder
from mocoembed.workspace import Workspace

SEEDS_OF_FEW = 3
WHAT = "fine-tuning"
# Settings that do not change what is learned, or that the images and the encoder stand for.
EXECUTION = ("train", "test", "encoder", "workspace", "run", "fresh", "exclude", "workers", "device",
             "checkpoint_every", "seeds", "baselines")

Progress = Callable[[int, int], None]
Note = Callable[[str], None]


def finetune(config: FinetuneConfig, progress: Progress = lambda done, total: None,
             note: Note = say_nothing) -> FinetuneResult:
    """Fine-tune an encoder on labelled images, measure it on others, and export the classifier into the workspace.

    `progress(done, total)` counts images. Resumes by itself. Raises `UsageError` for wrong settings, `CollectionError`
    for images that cannot be learned from, `TrainingError` when the loss is not finite, `LockedError` when another
    process does the same, `Interrupted` after a signal, when all is saved.
    """
    begun = time.perf_counter()
    Compute.of(config.device, config.precision)  # what is wrong with the options is said before images are read
    frozen = open_encoder(config.encoder, Workspace(config.workspace), note)
    require_finite(frozen)
    require_stages(config, frozen)
    train, test = both_sides(config, WHAT, note)
    run = Run(config, train, frozen, note)
    run.plan(len(test))  # and see that the settings are possible, before anything is written
    others = ImageBaselines(train, test, frozen, config, len(run.seeds))
    with locked(run.folder / ".lock", f"The fine-tuning {run.folder.name!r}"), StopRequest() as stop:
        run.claim()
        run.tally.expect(others.read_kept(note))
        run.tally.report_to(progress)
        classifiers = [run.learned(seed, stop) for seed in run.seeds]
        delete_checkpoints(run.folder)  # a kill may have left the last one
        test, logits = run.shown(test, classifiers, stop)  # once, when all have learned
        shared = run.overlap(test, stop)
        path = run.export(classifiers[0])
        beside = others.measure(note, run.tally.add, stop)
    truth = test.classes(range(len(test)), run.labels).numpy()
    repeats = [Repeat(seed, one.frozen.provenance["images"], truth, found.softmax(dim=1).numpy(),
                      one.frozen.provenance["steps"]) for seed, one, found in zip(run.seeds, classifiers, logits)]
    started, none = run.start(run.seeds[0]), torch.zeros(1, frozen.dimension("backbone"))
    bank, queries = (side.side(none.expand(len(side), -1), started) for side in (train, test))  # vectors play no part
    return FinetuneResult(config, bank, queries, repeats, run.labels, shared, beside.with_majority(bank, queries),
                          classifiers[0], path, run.folder, str(run.device), time.perf_counter() - begun)


class Run:
    """The seeds of a fine-tuning, and the folder of what they have learned."""

    def __init__(self, config: FinetuneConfig, train: LabelledImages, frozen: FrozenEncoder, note: Note):
        self.config, self.train, self.frozen, self.note = config, train, frozen, note
        self.labels = sorted(set(train.names))
        self.seeds = list(range(config.seed, config.seed + (config.seeds or (SEEDS_OF_FEW if config.labels else 1))))
        self.device = Compute.of(config.device, "fp32").device
        learned = {name: value for name, value in to_dict(config).items() if name not in EXECUTION}
        self.identity = sha256_json({**learned, "images": train.identity, "encoder": frozen.fingerprint()})
        self.folder = Workspace(config.workspace).finetunings / (config.run or f"finetune-{self.identity[:8]}")
        self.source = {name: frozen.provenance[name] for name in ("name", "file", "recipe", "epochs", "licence")
                       if name in frozen.provenance}
        self.tally = Tally()
        masks = [few_mask(train, config.labels, seed) for seed in self.seeds]
        self.used = train.only(np.logical_or.reduce(masks))
        """What any seed learns from."""
        self.compares = len(self.used) >= LEAST_ROWS and features_fit(len(self.used), frozen.dimension("backbone"))
        """Whether near-duplicates are looked for among them."""

    def start(self, seed: int) -> FrozenEncoder:
        """What a seed starts from."""
        if not self.config.from_scratch:
            return self.frozen
        return random_encoder(self.frozen.encoder.spec, self.frozen.transform, seed)

    def tuning(self, seed: int) -> FineTuning:
        """A seed before its first step; raises what is wrong with the settings."""
        images = with_few_labels(self.train, self.config.labels, seed)
        return FineTuning(self.config, self.start(seed), images, self.labels, seed)

    def claim(self):
        """Make the folder this run's; `UsageError` when a run of this name had other settings or images."""
        about = self.folder / "config.json"
        if self.config.fresh:
            delete_checkpoints(self.folder)
            for path in self.folder.glob("seed-*.safetensors"):
                path.unlink()
        elif about.exists() and read_json(about).get("identity") != self.identity:
            raise UsageError(f"The fine-tuning {self.folder.name!r} was started with other settings, images or another "
                             "encoder. Give another --run, or --fresh to start this one over.")
        write_json(about, {**to_dict(self.config), "identity": self.identity})

    def plan(self, tested: int):
        """Count the images that are learned from, and those that are classified."""
        first = self.tuning(self.seeds[0])
        self.tally.expect(len(self.seeds) * (first.how.epochs * len(first.images) + tested)
                          + self.compares * (len(self.used) + tested))

    def learned(self, seed: int, stop: StopRequest) -> Classifier:
        """The classifier of a seed: as it was kept, else learned from where its checkpoint is."""
        place, path = seed - self.seeds[0], self.folder / f"seed-{seed}.safetensors"
        if path.exists():
            try:
                kept = load_classifier(path)
                self.tally.add(kept.frozen.provenance["seen"])
                self.note(f"seed {seed} was learned before ({path}); --fresh learns again")
                return kept
            except FormatError as error:
                self.note(f"{error} It is made again.")
        tuning = self.tuning(seed)
        tuning.resume(self.folder)
        if tuning.step:
            self.note(f"resuming {self.folder} after step {tuning.step} of seed {seed}")
            self.tally.add(tuning.step * tuning.how.epochs * len(tuning.images) // tuning.steps)
        elif place == 0:
            self.note(f"{len(tuning.images)} labelled images of {len(self.labels)} classes, "
                      f"{counted(tuning.steps, 'step')} in {counted(tuning.how.epochs, 'epoch')}, seeds: "
                      f"{len(self.seeds)}; run {self.folder}")
        about = {"task": "finetune", "config": to_dict(self.config)}
        tuning.learn(stop, self.note, lambda: tuning.save(self.folder, place * tuning.steps, about), self.tally.add)
        made = tuning.classifier({
            "encoder": tuning.frozen.fingerprint(), "source": self.source, "run": self.identity,
            "fine_tuned_on": pathlib.Path(self.config.train).name, "from_scratch": self.config.from_scratch,
            "labels": self.config.labels, "freeze_stages": self.config.freeze_stages,
            "seen": tuning.how.epochs * len(tuning.images)})
        save_classifier(path, made)
        delete_checkpoints(self.folder)
        return made

    def shown(self, test: LabelledImages, classifiers: list[Classifier],
              stop: StopRequest) -> tuple[LabelledImages, list[torch.Tensor]]:
        """The test images that can be read, and the logits (Q, C) that each classifier gives them."""
        found = [self._encoded(test, one.frozen, False, one.logits, stop) for one in classifiers]
        for text in found[0].notes(test):
            self.note(text)
        readable = torch.from_numpy(found[0].readable)
        return test.only(found[0].readable), [one.vectors[readable] for one in found]

    def overlap(self, test: LabelledImages, stop: StopRequest) -> Overlap:
        """Test images that are among those learned from; near-duplicates by the features of the encoder given."""
        sides = []
        for images in (self.used, test):
            vectors = torch.zeros(len(images), 1)
            if self.compares:
                vectors = self._encoded(images, self.frozen, True, lambda features: features, stop).vectors
            sides.append(images.side(vectors, self.frozen))
        train, asked = sides
        return found_overlap(train, asked, self.compares)

    def _encoded(self, images: LabelledImages, frozen: FrozenEncoder, normalized: bool,
                 then: Callable[[torch.Tensor], torch.Tensor], stop: StopRequest) -> Encoded:
        """What is made of the backbone features of images, seen as in a test."""
        embed = Embedder(frozen, Compute(self.device, "fp32"), "backbone", normalized=normalized)

        def encode(pixels: torch.Tensor) -> torch.Tensor:
            stop.raise_if_set(f"Stopped during the test; what was learned is kept in {self.folder}. Run the same "
                              "command again to continue.")
            return then(embed(pixels))

        return encoded(images, frozen.transform, encode, self.config.workers, self.tally.add)

    def export(self, classifier: Classifier) -> pathlib.Path:
        """Keep the classifier under its fingerprint, its graph beside it, and make it the newest of the workspace.

        One that learned from scratch is there for comparison, and leaves the newest as it is.
        """
        workspace = Workspace(self.config.workspace)
        path = workspace.classifier_of(classifier.fingerprint)
        if not path.exists():
            save_classifier(path, classifier)
        keep_classifier_graph(path.with_suffix(".onnx"), classifier, self.note)
        if not self.config.from_scratch:
            write_bytes(workspace.newest_classifier, path.read_bytes())
        return path
