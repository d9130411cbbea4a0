"""The rule of `--recipe auto`: how many images, how large, and the machine -> all settings, with the reasons.

`choose` is a function of plain facts. docs/own-images.md has the measurements behind the numbers here, and says on what
the rule has not been tried.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import FROM_INIT
from mocoembed.memory import shown
from mocoembed.notes import about, counted

PUBLISHED_FROM = 100_000  # images, from which a GPU runs a published recipe as it is
FEW_FOR_SCRATCH = 20_000  # images, below which published weights are likely to serve better
SMALL_SIDE = 48  # pixels of the shorter side, up to which images are treated as those of CIFAR-10 are
BUDGET = 1800.0  # seconds that a pretraining on a CPU should take
MOST_EPOCHS, EPOCHS_AT_800 = 400, 200
LARGEST_QUEUE = 4096  # where no published recipe is run as it is
SHARE_IN_QUEUE = 0.8  # of the images, whose keys the queue may hold
OF_A_QUEUE = {"init", "dictionary", "queue_size", "momentum", "mask_same_image", "groups_at_once"}
"""Settings that say that a queue is wanted, or that have been tried with no other dictionary."""
BATCHES = ((2_000, 64), (20_000, 128), (math.inf, 256))  # (fewer images than, batch size)
LR = 0.06  # with these batches; in proportion with others
WARMUP_SHARE, LONGEST_WARMUP = 0.1, 5.0  # of the epochs; epochs
# Networks for a CPU, from the costly to the cheap: (width of a ResNet-18, side of a view).
LADDER = ((1.0, 128), (1.0, 96), (0.5, 96), (0.5, 64), (0.25, 64))
LADDER_OF_SMALL_IMAGES = ((1.0, 32), (0.5, 32), (0.25, 32))
# What is tried, in this order, when not even one BatchNorm group at a time fits into the memory.
SMALLEST_GROUP = 32  # images, as in MoCo v2: 256 in 8 groups
SMALLER_SIDES, SMALLER_WIDTHS, SMALLEST_BATCH = (160, 128, 96, 64), (0.5, 0.25), 8
ROOM = 0.85  # of the memory, which what is estimated without a trial may take
# Of one core of an Intel Xeon (Emerald Rapids). A step is four or six forward passes of an image, the rest its views.
MULTIPLICATIONS_A_SECOND, SECONDS_AN_IMAGE = 35e9, 0.001
MORE_CORES = 0.8  # of a core, that each core after the first adds
# Of every epoch, whatever its length: beginning it, and saving the checkpoint, whose size goes with the width's square.
SECONDS_AN_EPOCH, SECONDS_TO_SAVE = 0.05, 0.4

Cost = Callable[[str, float, str, int], int]
"""(arch, width, stem, image size) -> multiplications of a forward pass of one image."""
Needed = Callable[[str, dict[str, Any]], int]
"""(recipe, settings) -> bytes of a process with as few BatchNorm groups at a time as can be."""


@dataclasses.dataclass(frozen=True)
class Facts:
    """All that `choose` knows of the images and the machine."""

    images: int
    side: int
    """Shorter side of an image in pixels, the median of a sample; 0 when none could be read."""
    gpu: bool
    cores: int
    """Processor cores of this machine that may be used."""
    processes: int
    memory: int | None = None
    """Bytes that one process may take on its device; `None` where the system does not say."""

    @property
    def small(self) -> bool:
        """Whether the images are as small as CIFAR-10's."""
        return 0 < self.side <= SMALL_SIDE

    @property
    def published(self) -> bool:
        """Whether a published recipe is run as it is."""
        return self.gpu and self.images >= PUBLISHED_FROM


@dataclasses.dataclass(frozen=True)
class Choice:
    """What to run, and why."""

    recipe: str
    settings: dict[str, Any]
    """The fields of `PretrainConfig` that were chosen otherwise than by the recipe, and those that were given."""
    reasons: list[str]
    """Lines for people."""


class _Plan:
    """Settings that are being chosen: the recipe's, over them the chosen ones, over all those that were given."""

    def __init__(self, recipe: str, facts: Facts, given: dict[str, Any]):
        self.recipe, self.facts, self.given = recipe, facts, given
        source = {"init": given["init"]} if given.get("init") else {}
        self.preset: dict[str, Any] = vars(PretrainConfig.of(recipe, "", **source))
        self.chosen: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return {**self.preset, **self.chosen, **self.given}[name]

    def put(self, values: dict[str, Any]) -> None:
        """Choose these, except where they were given."""
        self.chosen |= {name: value for name, value in values.items() if name not in self.given}

    def settings(self) -> dict[str, Any]:
        """What was chosen otherwise than by the recipe, and what was given."""
        return {**{name: value for name, value in self.chosen.items() if self.preset[name] != value}, **self.given}


def choose(facts: Facts, given: dict[str, Any], cost: Cost, resnets: tuple[str, ...],
           needed: Needed = lambda recipe, settings: 0) -> Choice:
    """The settings for these facts. Those that were `given` stay, and the others go with them.

    `resnets`: the architectures that take a width and a stem.
    """
    plan = _Plan("cifar10" if facts.small else "moco-v2" if facts.published else "small", facts, given)
    if facts.published:
        _choose_batch(plan, plan.preset["batch_size"])
        reasons = [f"as published for many images on GPUs: {plan.recipe}", *_fit_memory(plan, resnets, needed)]
        return Choice(plan.recipe, plan.settings(), reasons)
    _choose_batch(plan, next(batch for fewer_than, batch in BATCHES if facts.images < fewer_than))
    _choose_dictionary(plan)
    network = _choose_network(plan, cost, resnets)
    plan.put({"warmup_epochs": round(min(LONGEST_WARMUP, WARMUP_SHARE * plan["epochs"]), 1)})
    for_memory = _fit_memory(plan, resnets, needed)
    reasons = [network, *for_memory, _of_batch_and_dictionary(plan), _of_time(plan, cost)]
    if facts.images < FEW_FOR_SCRATCH and not given.get("init"):
        reasons.append(f"{counted(facts.images, 'image')} are few to learn from scratch: published weights may serve "
                       "better (mocoembed embed IMAGES --encoder moco-v2-800ep; docs/own-images.md)")
    return Choice(plan.recipe, plan.settings(), reasons)


def wanted_epochs(images: int) -> int:
    """Epochs worth their time: fewer for more images, so that twice the images take 1.4 times as long."""
    return max(1, min(MOST_EPOCHS, round(EPOCHS_AT_800 * math.sqrt(800 / images))))


def _choose_batch(plan: _Plan, usual: int) -> None:
    """Batch size, BatchNorm groups and learning rate."""
    facts, groups = plan.facts, plan["bn_groups"] if "bn_groups" in plan.given else 1
    unit = math.lcm(groups, facts.processes)
    batch = max(min(usual, facts.images) // unit, 2) * unit
    plan.put({"batch_size": batch})
    batch = plan["batch_size"]
    lr = plan.preset["lr"] if facts.published else LR
    most = max(facts.processes, batch * plan.preset["bn_groups"] // plan.preset["batch_size"])
    plan.put({"bn_groups": max((number for number in range(1, most + 1) if batch % number == 0
                                and number % facts.processes == 0 and number < batch), default=1),
              "lr": float(f"{lr * batch / usual:.3g}")})


def _choose_network(plan: _Plan, cost: Cost, resnets: tuple[str, ...]) -> str:
    """Architecture, width, stem, size and epochs; the reason."""
    facts, wanted = plan.facts, wanted_epochs(plan.facts.images)
    size = 32 if facts.small else 224 if facts.side >= 160 else 96 if facts.side >= 80 else 64
    if plan["arch"] == FROM_INIT:
        plan.put({"epochs": max(1, wanted // 10), "image_size": size if facts.gpu else min(size, 128)})
        if not facts.gpu and (seconds := estimated_seconds(plan, cost, plan["epochs"])) > BUDGET:
            plan.put({"epochs": max(1, int(plan["epochs"] * BUDGET / seconds))})
        return f"the network of --init, views of {plan['image_size']} pixels"
    if facts.gpu:
        plan.put({"arch": "resnet50" if facts.images >= FEW_FOR_SCRATCH and not facts.small else "resnet18",
                  "width": 1.0, "epochs": min(2 * MOST_EPOCHS, 4 * wanted), "image_size": size})
        _fit_other_networks(plan, resnets)
        return f"{_shown_network(plan)}: by the size of the images and their number"
    ladder = LADDER_OF_SMALL_IMAGES if facts.small else LADDER
    for width, size in ladder:
        plan.put({"arch": "resnet18", "width": width, "image_size": size, "epochs": wanted,
                  "stem": "3x3s2" if facts.small else "7x7s2-pool"})
        _fit_other_networks(plan, resnets)
        if (seconds := estimated_seconds(plan, cost, wanted)) <= BUDGET:
            fit = "fit" if plan["epochs"] == wanted else "would fit"
            return f"{_shown_network(plan)}: the largest whose {wanted} epochs {fit} into {BUDGET / 60:.0f} min here"
    plan.put({"epochs": max(1, int(wanted * BUDGET / seconds))})
    return f"{_shown_network(plan)}: the smallest, with the epochs that {BUDGET / 60:.0f} min here allow"


def _fit_other_networks(plan: _Plan, resnets: tuple[str, ...]) -> None:
    """Of an architecture that was given and takes no width: the size that such networks are made for."""
    if plan["arch"] not in resnets:
        plan.put({"width": 1.0, "stem": "7x7s2-pool", "image_size": 224})


def _choose_dictionary(plan: _Plan) -> None:
    """The dictionary, and K."""
    images = plan.facts.images
    if plan.facts.small and not plan.facts.gpu and not OF_A_QUEUE & set(plan.given):
        plan.put({"dictionary": "end-to-end"})
        return
    size = min(LARGEST_QUEUE, 2 ** int(math.log2(max(2.0, SHARE_IN_QUEUE * images))))
    if plan["dictionary"] == "memory-bank":
        size = max(1, min(size, images - plan["batch_size"]))
    plan.put({"queue_size": size})


def _fit_memory(plan: _Plan, resnets: tuple[str, ...], needed: Needed) -> list[str]:
    """Choose less until a step fits with few BatchNorm groups at a time, which changes no result; say what and why."""
    memory = plan.facts.memory
    if memory is None or (asked := needed(plan.recipe, plan.settings())) <= ROOM * memory:
        return []
    before, least = dict(plan.chosen), asked
    for values in _smaller(plan, resnets):
        plan.put(values)
        if (least := needed(plan.recipe, plan.settings())) <= ROOM * memory:
            break
    less = [text for name, text in (("image_size", "views of {} pixels"), ("width", "width {:g}"),
                                    ("batch_size", "batch {}"), ("bn_groups", "{} BatchNorm groups"))
            if plan[name] != {**plan.preset, **before, **plan.given}[name] for text in [text.format(plan[name])]]
    return [f"it would take {shown(asked)} even computed in the smallest parts, and {shown(memory)} are available: "
            + (", ".join(less) or "nothing smaller goes with what was given")
            + (f" ({shown(least)})" if less else "") + (", which is more, too" if least > memory else "")]


def _smaller(plan: _Plan, resnets: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """What to choose one after another: finer groups, smaller views, narrower networks, smaller batches."""
    facts, batch = plan.facts, plan["batch_size"]
    if plan["dictionary"] != "end-to-end" and plan["batchnorm"] != "sync":
        yield from ({"bn_groups": groups} for groups in range(plan["bn_groups"] + 1, batch // SMALLEST_GROUP + 1)
                    if batch % groups == 0 and groups % facts.processes == 0)
    if plan["arch"] in (*resnets, FROM_INIT):
        yield from ({"image_size": side} for side in SMALLER_SIDES if side < plan["image_size"])
    if plan["arch"] in resnets:
        yield from ({"width": width} for width in SMALLER_WIDTHS if width < plan["width"])
    while "batch_size" not in plan.given and (half := plan["batch_size"] // 2) >= SMALLEST_BATCH:
        groups = plan["bn_groups"]
        if half % math.lcm(groups, facts.processes) or half < 2 * groups:
            return
        yield {"batch_size": half, "lr": float(f"{plan['lr'] / 2:.3g}")}


def estimated_seconds(plan: _Plan, cost: Cost, epochs: int) -> float:
    """About what so many epochs take on this machine's cores."""
    encoder = cost(plan["arch"], plan["width"], plan["stem"], plan["image_size"])
    forward = 6 if plan["dictionary"] == "end-to-end" else 4  # its keys have gradients too
    each = forward * encoder / MULTIPLICATIONS_A_SECOND + SECONDS_AN_IMAGE
    passes = 2 if plan["symmetric"] else 1
    work = plan.facts.images * passes * each / (1 + MORE_CORES * (plan.facts.cores - 1))
    return epochs * (work + SECONDS_AN_EPOCH + SECONDS_TO_SAVE * plan["width"]**2)


def _shown_network(plan: _Plan) -> str:
    width = "" if plan["width"] == 1 else f" of width {plan['width']:g}"
    return f"{plan['arch']}{width}, views of {plan['image_size']} pixels"


def _of_batch_and_dictionary(plan: _Plan) -> str:
    groups = counted(plan["bn_groups"], "BatchNorm group")
    batch = f"batch {plan['batch_size']} in {groups}, lr {plan['lr']:g}"
    if plan["dictionary"] == "end-to-end":
        return (f"{batch}, its other images as negatives (end-to-end): better than a queue in short runs on images of "
                f"at most {SMALL_SIDE} pixels, as in docs/own-images.md")
    return f"{batch}, K {plan['queue_size']}, m {plan['momentum']:g}: by the number of images, as in docs/own-images.md"


def _of_time(plan: _Plan, cost: Cost) -> str:
    more = f"--epochs {2 * plan['epochs']} takes twice as long"
    if plan.facts.gpu:
        return f"{counted(plan['epochs'], 'epoch')}; the time is known after the first steps; {more}"
    time = about(estimated_seconds(plan, cost, plan["epochs"]))
    whose = "a ResNet-50's" if plan["arch"] == FROM_INIT else "the network's"
    return (f"{counted(plan['epochs'], 'epoch')}, {time} by {whose} cost on "
            f"{counted(plan.facts.cores, 'core')}; {more}")
