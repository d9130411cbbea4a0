"""What `--recipe auto` stands for here: gathers the facts, and gives the config that is run and recorded.

That config is a preset with every setting that differs from it, as if `command_of` it had been typed.
"""

import dataclasses
import os
import shlex
import sys
from functools import cache

from mocoembed.checks import option_name
from mocoembed.config import PretrainConfig
from mocoembed.config.pretrain import FROM_INIT
from mocoembed.data.images import Listing
from mocoembed.data.loader import cores
from mocoembed.memory import available_memory
from mocoembed.model.cost import work
from mocoembed.model.encoder import ARCHITECTURES, EncoderSpec
from mocoembed.model.ranks import ALONE
from mocoembed.train.auto_recipe import Facts, choose
from mocoembed.train.filling import Filling
from mocoembed.train.run import EXECUTION, require_shares

SAMPLE = 256  # images whose headers tell how large the images are
CACHE_SHARE, CACHED_FROM = 0.25, 3  # of the available memory, that decoded images take unasked; epochs


def resolved(config: PretrainConfig, listing: Listing, gpu: bool, processes: int) -> tuple[PretrainConfig, list[str]]:
    """The config that `auto` stands for with this listing on this machine, and lines that say what and why.

    Raises `UsageError` when what was given does not go together, or with so many processes.
    """
    given = {name: getattr(config, name) for name in config.given_fields()}
    sides = _filling(config, listing).sample(SAMPLE)[:, :2].min(dim=1).values
    side = int(sides[sides > 0].median()) if sides.any() else 0
    facts = Facts(len(listing), side, gpu, cores(), processes)

    @cache
    def cost(arch: str, width: float, stem: str, size: int) -> int:
        if arch == FROM_INIT:  # not opened yet: taken for a ResNet-50, which few sources exceed
            arch, width, stem = "resnet50", 1.0, "7x7s2-pool"
        return work(EncoderSpec(arch, width, stem, "linear", 128), size)

    choice = choose(facts, given, cost, tuple(ARCHITECTURES))
    chosen = PretrainConfig.of(choice.recipe, config.images, **choice.settings)
    require_shares(chosen, processes, gpu)
    if "cache" not in given and _fits_the_cache(chosen, listing):
        chosen = dataclasses.replace(chosen, cache="ram")
    shown = f", shorter side {side} pixels in the median" if side else ""
    where = "GPU" if gpu else f"CPU, {facts.cores} cores"
    return chosen, [f"--recipe auto: {len(listing):,} images{shown}; {where}",
                    *(f"  {reason}" for reason in choice.reasons), f"  the same run anywhere: {command_of(chosen)}"]


def _filling(config: PretrainConfig, listing: Listing) -> Filling:
    return Filling(listing, config, 0, ALONE, lambda text: None, lambda: None)


def _fits_the_cache(config: PretrainConfig, listing: Listing) -> bool:
    """Whether decoding every image once pays, and takes a small part of the memory."""
    if config.epochs < CACHED_FROM or sys.platform != "linux":
        return False
    available, filling = available_memory(), _filling(config, listing)
    return available is not None and filling.estimated(filling.sample(SAMPLE)) <= CACHE_SHARE * available


def command_of(config: PretrainConfig) -> str:
    """The command line that gives this run: the recipe, and all that differs from it and changes the result."""
    source = {} if config.init is None else {"init": config.init}
    preset = PretrainConfig.of(config.recipe, config.images, **source)
    words = ["mocoembed", "pretrain", os.fspath(config.images), "--recipe", config.recipe]
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), option_name(field.name)
        told = field.name in ("cache", "workspace", "run") or field.name not in (*EXECUTION, "images", "recipe")
        if not told or (value == getattr(preset, field.name) and field.name not in source):
            continue
        if isinstance(value, bool):
            words.append(name if value else name.replace("--", "--no-", 1))
        elif field.name == "exclude":
            words += [word for glob in value for word in (name, glob)]
        else:
            words += [name, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)
