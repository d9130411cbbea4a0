"""What `--recipe auto` stands for here: gathers the facts, and gives the config that is run and recorded.

That config is a preset with every setting that differs from it, as if `command_of` it had been typed.
"""

import dataclasses
import os
import shlex
import sys
from functools import cache
from typing import Any

from mocoembed.checks import option_name
from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import AUTO, FROM_INIT
from mocoembed.cores import cores
from mocoembed.data.deep import shown_range
from mocoembed.data.images import Listing, scan
from mocoembed.memory import available_memory
from mocoembed.memory import shown as memory_shown
from mocoembed.model.cost import work
from mocoembed.model.encoder import ARCHITECTURES, EncoderSpec
from mocoembed.model.precision import Compute
from mocoembed.model.ranks import ALONE
from mocoembed.notes import counted
from mocoembed.train.auto_recipe import SMALLEST_BATCH, Facts, choose
from mocoembed.train.filling import Filling
from mocoembed.train.launch import joined_ranks
from mocoembed.train.memory_plan import least_needed
from mocoembed.train.run import EXECUTION, limited, require_shares

# What --init brings is not opened yet, and taken for a ResNet-50, which few sources exceed.
AS_INIT: dict[str, Any] = {"arch": "resnet50", "width": 1.0, "stem": "7x7s2-pool"}
SAMPLE = 256  # images whose headers tell how large the images are
CACHE_SHARE, CACHED_FROM = 0.25, 3  # of the available memory, that decoded images take unasked; epochs
# Two processes serve two cores better than one process with two threads does, which wait for each other in every
# layer, where the network has so few multiplications, the run sees so many images, and memory has room for both.
SMALL_NETWORK, LONG_RUN, ROOM_OF_EACH = 100_000_000, 20_000, 2 << 30


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a run has of its machine."""

    gpu: bool = False
    processes: int = 1
    memory: int | None = None
    """Bytes that each process may take on its device; `None` where the system does not say."""
    workers: int = 0
    """Loading processes of each process."""


def resolved(config: PretrainConfig, listing: Listing, machine: Machine) -> tuple[PretrainConfig, list[str]]:
    """The config that `auto` stands for with this listing on this machine, and lines that say what and why.

    Raises `UsageError` when what was given does not go together, or with so many processes.
    """
    facts, given = _facts(config, listing, machine), _given(config)

    @cache  # asked for the same by both who want to know
    def least(tried: PretrainConfig) -> int:
        return least_needed(tried, facts.images, machine.processes, machine.workers, not machine.gpu)

    def needed(recipe: str, settings: dict[str, Any]) -> int:
        of_init = AS_INIT if settings.get("arch", given.get("init") and FROM_INIT) == FROM_INIT else {}
        return least(PretrainConfig.of(recipe, config.images, **{**settings, **of_init}))

    choice = choose(facts, given, _cost, tuple(ARCHITECTURES), needed)
    chosen = PretrainConfig.of(choice.recipe, config.images, **choice.settings)
    require_shares(chosen, machine.processes, machine.gpu)
    if "cache" not in given and _fits_the_cache(chosen, listing, machine, needed(choice.recipe, choice.settings)):
        chosen = dataclasses.replace(chosen, cache="ram")
    shown = f", shorter side {facts.side} pixels in the median" if facts.side else ""
    where = "GPU" if machine.gpu else f"CPU, {counted(facts.cores, 'core')}"
    if machine.memory is not None:
        where += f", {memory_shown(machine.memory)} available" + " for each process" * (machine.processes > 1)
    also = [] if machine.gpu or machine.processes == 1 else [
        f"{machine.processes} processes: faster for a small network than the threads of one; the command below needs "
        f"--processes {machine.processes} for them"]
    return chosen, [f"--recipe auto: {len(listing):,} images{shown}; {where}",
                    *(f"  {reason}" for reason in (*choice.reasons, *also)),
                    f"  the same run anywhere: {command_of(chosen)}"]


def _given(config: PretrainConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.given_fields()}


def _facts(config: PretrainConfig, listing: Listing, machine: Machine) -> Facts:
    sides = _filling(config, listing).sample(SAMPLE)[:, :2].min(dim=1).values
    side = int(sides[sides > 0].median()) if sides.any() else 0
    return Facts(len(listing), side, machine.gpu, cores(), machine.processes, machine.memory)


def _cost(arch: str, width: float, stem: str, size: int) -> int:
    if arch == FROM_INIT:
        arch, width, stem = AS_INIT.values()
    return work(EncoderSpec(arch, width, stem, "linear", 128), size)


def with_processes(config: PretrainConfig) -> PretrainConfig:
    """The config of a run on a CPU, with two processes if `auto` is asked and they are faster (docs/pretraining.md).

    What was given for the batch, its BatchNorm groups or the number of processes is kept to. For the command line:
    a script of a user's would need a guard around its main part to have processes started.
    """
    asked = config.recipe == AUTO and config.processes is None and not config.init and config.drop_last
    shared = config.batch_size % 2 == config.bn_groups % 2 == 0 and config.batchnorm != "sync"
    if not asked or not shared or config.batch_size < 2 * SMALLEST_BATCH:
        return config
    if cores() < 2 or joined_ranks() or Compute.of(config.device, "fp32").device.type != "cpu":
        return config
    memory = available_memory(2)
    listing = limited(scan(config.images, "none", exclude=config.exclude), config)
    if (memory is not None and memory < ROOM_OF_EACH) or len(listing) < 2 * SMALLEST_BATCH:
        return config
    # Without the memory, which takes a trial: the processes choose again, with it.
    choice = choose(_facts(config, listing, Machine(processes=2)), _given(config), _cost, tuple(ARCHITECTURES))
    chosen = PretrainConfig.of(choice.recipe, config.images, **choice.settings)
    cost = _cost(chosen.arch, chosen.width, chosen.stem, chosen.image_size)
    faster = 0 < cost <= SMALL_NETWORK and chosen.epochs * len(listing) >= LONG_RUN
    return dataclasses.replace(config, processes=2) if faster else config


def _filling(config: PretrainConfig, listing: Listing) -> Filling:
    return Filling(listing, config, 0, ALONE, lambda text: None, lambda: None)


def _fits_the_cache(config: PretrainConfig, listing: Listing, machine: Machine, needed: int) -> bool:
    """Whether decoding every image once pays, takes a small part of the memory, and leaves a CPU what a step needs."""
    if config.epochs < CACHED_FROM or sys.platform != "linux":
        return False
    available, filling = available_memory(), _filling(config, listing)
    if available is None:
        return False
    left = available - (0 if machine.gpu else machine.processes * needed)
    return filling.estimated(filling.sample(SAMPLE)) <= min(CACHE_SHARE * available, left)


def command_of(config: PretrainConfig, also: tuple[str, ...] = ()) -> str:
    """The command line that gives this run: the recipe, and all that differs from it and changes the result.

    `also` are fields that change only what is reported of it.
    """
    source = {} if config.init is None else {"init": config.init}
    preset = PretrainConfig.of(config.recipe, config.images, **source)
    words = ["mocoembed", "pretrain", os.fspath(config.images), "--recipe", config.recipe]
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), option_name(field.name)
        told = field.name in ("cache", "workspace", "run", *also) or field.name not in (*EXECUTION, "images", "recipe")
        if not told or (value == getattr(preset, field.name) and field.name not in source):
            continue
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        elif field.name == "exclude":
            words += [word for glob in value for word in (name, glob)]
        elif field.name == "value_range":
            words += [name, shown_range(value)]
        else:
            words += [name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
