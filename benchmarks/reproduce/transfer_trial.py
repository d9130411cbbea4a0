"""One trial of `transfer.py`: fine-tune one model on the scenes, measure it on others, and print the figures as JSON.

    python -m benchmarks.reproduce.transfer_trial detection 0 --weights backbone.pth

Detection: AP (COCO's, the mean over IoU 0.5 to 0.95), AP50 and AP75 by pycocotools. Segmentation: the mean over the
background and the classes of intersection over union, of one confusion matrix of all pixels. All in percent. The seed
decides the new layers, the order of the scenes and the flips, and random weights of the backbone; the scenes are the
same for all trials. The last iteration is measured, once.
"""

import contextlib
import io
import json
import pathlib
import time

import click
import numpy as np
import torch
from torch.nn import functional

from benchmarks.reproduce.scenes import SIDE, SceneTruth, draw_truth
from benchmarks.reproduce.transfer_models import MODELS, NORMS
from mocoembed.data.sample import CLASSES
from mocoembed.recipes import IMAGENET_MEAN, IMAGENET_STD

FIRST_TEST = 1_000_000  # index of the first scene to measure on
BATCH, SGD_MOMENTUM, WEIGHT_DECAY, WARM_UP, DROPS = 8, 0.9, 1e-4, 0.1, (0.75, 0.92)
"""Of both tasks; the learning rate rises over the first tenth and falls by 10 twice, as in the authors' schedules."""
LR = 0.02
BACKGROUND = 0.2  # weight of the background's pixels in segmentation's loss: they are 86 %


def learning_rate(step: int, steps: int) -> float:
    """The share of the learning rate at a step."""
    done = step / steps
    return min(1.0, (step + 1) / (WARM_UP * steps)) * 0.1 ** sum(done >= drop for drop in DROPS)


def fine_tune(model, loss_of, scenes: list[SceneTruth], steps: int, lr: float, seed: int) -> list[float]:
    """SGD on batches of flipped scenes, every scene once an epoch; the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr, SGD_MOMENTUM, weight_decay=WEIGHT_DECAY)
    rng, order, losses = np.random.default_rng(seed), np.zeros(0, int), []
    torch.manual_seed(seed)  # what the model itself draws: proposals, dropout
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * learning_rate(step, steps)
        while len(order) < BATCH:
            order = np.concatenate([order, rng.permutation(len(scenes))])
        batch, order = [scenes[i] for i in order[:BATCH]], order[BATCH:]
        loss = loss_of(model, batch, rng.random(BATCH) < 0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"the loss of step {step} is {losses[-1]}")
    return losses


def to_float(image: np.ndarray) -> torch.Tensor:
    """(96, 96, 3) uint8 -> (3, 96, 96) float32, 0 to 1."""
    return torch.from_numpy(image).permute(2, 0, 1) / 255


def detection_loss(model, batch: list[SceneTruth], flips) -> torch.Tensor:
    """The sum of the four losses of Faster R-CNN."""
    images, targets = [], []
    for scene, flip in zip(batch, flips):
        boxes, image = torch.from_numpy(scene.boxes), to_float(scene.image)
        if flip:
            boxes, image = torch.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], 1), \
                           image.flip(-1)
        images.append(image)
        targets.append({"boxes": boxes, "labels": torch.from_numpy(scene.labels) + 1})
    return sum(model(images, targets).values())


def normalised(batch: list[SceneTruth]) -> torch.Tensor:
    """N x 3 x 96 x 96, as the backbone takes it; the detector does this by itself."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return torch.stack([(to_float(scene.image) - mean) / std for scene in batch])


def segmentation_loss(model, batch: list[SceneTruth], flips) -> torch.Tensor:
    """The mean cross-entropy of the pixels, weighted."""
    images, truth = normalised(batch), torch.from_numpy(np.stack([scene.classes() for scene in batch]))
    flipped = torch.from_numpy(flips)
    images[flipped], truth[flipped] = images[flipped].flip(-1), truth[flipped].flip(-1)
    weight = torch.ones(len(CLASSES) + 1)
    weight[0] = BACKGROUND
    return functional.cross_entropy(model(images)["out"], truth, weight)


@torch.inference_mode()
def average_precision(model, scenes: list[SceneTruth]) -> dict[str, float]:
    """AP, AP50 and AP75 by pycocotools, in percent."""
    found = []
    for i, scene in enumerate(scenes):
        (result,) = model([to_float(scene.image)])
        for box, label, score in zip(result["boxes"].tolist(), result["labels"].tolist(), result["scores"].tolist()):
            found.append({"image_id": i + 1, "category_id": label, "score": score,
                          "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
    return coco_precision(scenes, found)


def coco_precision(scenes: list[SceneTruth], found: list[dict]) -> dict[str, float]:
    """COCO's measure of detections, of which every one has image_id (from 1), category_id (from 1), bbox, score."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    boxes = [(i + 1, int(label) + 1, *box.tolist()) for i, scene in enumerate(scenes)
             for label, box in zip(scene.labels, scene.boxes)]
    with contextlib.redirect_stdout(io.StringIO()):  # it tells its progress there
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1} for i in range(len(scenes))],
            "categories": [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)],
            "annotations": [{"id": n + 1, "image_id": image, "category_id": label, "iscrowd": 0,
                             "area": (right - left) * (bottom - top), "bbox": [left, top, right - left, bottom - top]}
                            for n, (image, label, left, top, right, bottom) in enumerate(boxes)]}
        truth.createIndex()
        if not found:
            return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: 100 * float(value) for name, value in zip(("AP", "AP50", "AP75"), evaluation.stats)}


@torch.inference_mode()
def mean_iou(model, scenes: list[SceneTruth]) -> dict[str, float]:
    """Mean intersection over union, in percent, of the background and the classes."""
    size = len(CLASSES) + 1
    confusion = np.zeros((size, size), np.int64)  # truth x predicted
    for first in range(0, len(scenes), BATCH):
        batch = scenes[first:first + BATCH]
        predicted = model(normalised(batch))["out"].argmax(1).numpy()
        truth = np.stack([scene.classes() for scene in batch])
        confusion += np.bincount((truth * size + predicted).ravel(), minlength=size ** 2).reshape(size, size)
    return {"mIoU": iou_of(confusion)}


def iou_of(confusion: np.ndarray) -> float:
    """Percent; a class that is neither there nor predicted does not count."""
    both = np.diag(confusion)
    either = confusion.sum(0) + confusion.sum(1) - both
    return 100 * float(np.mean(both[either > 0] / either[either > 0]))


FIGURES = {"detection": ("AP", "AP50", "AP75"), "segmentation": ("mIoU",)}
TASKS = {"detection": (detection_loss, average_precision), "segmentation": (segmentation_loss, mean_iou)}


def trial(task: str, weights: pathlib.Path | None, norm: str, seed: int, counts: tuple[int, int, int]) -> dict:
    """Fine-tune and measure; `counts`: steps, scenes to learn from, scenes to measure on.

    A model whose loss is no longer finite finds nothing: its figures are 0, and `diverged` says so.
    """
    steps, learn, measure = counts
    loss_of, measured = TASKS[task]
    model = MODELS[task]("resnet18", weights, norm, seed, classes=len(CLASSES) + 1)
    begun = time.process_time()
    try:
        losses = fine_tune(model.train(), loss_of, [draw_truth(0, i) for i in range(learn)], steps, LR, seed)
        found = {**measured(model.eval(), [draw_truth(0, FIRST_TEST + i) for i in range(measure)]),
                 "loss": float(np.mean(losses[-len(losses) // 10:]))}
    except FloatingPointError as error:
        found = {**dict.fromkeys(FIGURES[task], 0.0), "diverged": str(error)}
    return {**found, "steps": steps, "scenes": learn, "test_scenes": measure,
            "processor_seconds": time.process_time() - begun}


@click.command()
@click.argument("task", type=click.Choice([*TASKS]))
@click.argument("seed", type=int)
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
              help="Of an export to torchvision; without: random weights.")
@click.option("--norm", type=click.Choice([*NORMS]), default="trained", show_default=True)
@click.option("--steps", default=100, show_default=True)
@click.option("--scenes", default=400, show_default=True, help="To learn from.")
@click.option("--test-scenes", default=200, show_default=True)
def main(task, seed, weights, norm, steps, scenes, test_scenes):
    """Run trial SEED of TASK."""
    torch.set_num_threads(1)
    click.echo(json.dumps(trial(task, weights, norm, seed, (steps, scenes, test_scenes))))


if __name__ == "__main__":
    main()
