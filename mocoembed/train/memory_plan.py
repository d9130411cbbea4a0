"""How many BatchNorm groups of a batch are learned from at a time: measured before the first step, said, or refused.

What is to come is added up (gradients, the optimizer's moments, views, batches of loading processes, and a step's own
memory by `mocoembed.train.trial`) and compared with what is available, of which `SHARE` may be taken.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mocoembed.config import PretrainConfig
from mocoembed.data.workers import PREFETCHED
from mocoembed.errors import MocoembedError, UsageError
from mocoembed.memory import MIB, available_memory, is_out_of_memory, shown
from mocoembed.model.encoder import Encoder
from mocoembed.model.precision import Compute
from mocoembed.notes import counted
from mocoembed.train.run import Training, encoder_spec, groups_of
from mocoembed.train.trial import FEW, MORE, Measured, measured

OVERHEAD = {"cpu": 1.3, "cuda": 1.15}  # what the allocator takes for each byte that is asked of it
SHARE = 0.95  # of the available memory, which may be taken
WORK_OF_VIEWS = 2.5  # views' worth of memory that making a view takes at its peak, over the view itself
LOADED_AHEAD = PREFETCHED + 1  # batches of crops for each loading process: with the one in hand
LIBRARIES = 150 * MIB  # of code and buffers, that PyTorch takes in its first step on a CPU
PROCESS = 150 * MIB  # that a loading process takes by itself
MOST_FOR_A_PIXEL = 4000  # times its bytes, that an image may take in any of the encoders, for choosing the first trial
NO_SUCH_NETWORK = (UsageError, RuntimeError, AssertionError, ValueError)  # for a width or size that it does not have
WIDTHS, SIDES = (0.5, 0.25, 0.125), (160, 128, 96, 64, 32)


@dataclass(frozen=True)
class Plan:
    """The memory of one process's step in bytes, as `needed` computes it."""

    config: PretrainConfig
    processes: int
    parameters: int
    """Bytes of the trained weights."""
    measured: Measured
    overhead: float
    """What the device's allocator takes for each byte that is asked of it."""
    itemsize: int
    workers: int
    on_cpu: bool

    @property
    def groups(self) -> int:
        """BatchNorm groups of a process's batch."""
        return groups_of(self.config, self.processes)

    def needed(self, at_once: int) -> int:
        """Bytes yet to come when that many groups go forward and backward at a time."""
        config, images = self.config, self.config.batch_size // self.processes
        whole = at_once >= self.groups
        piece = images if whole else -(-images // self.groups) * at_once
        graphs = 2 if whole and config.symmetric else 1
        step = self.measured.base + graphs * piece * self.measured.image
        fixed = self.parameters  # SGD's momentum; gradients are in what was measured
        sizes = [images * 3 * side ** 2 for side in config.view_sizes]
        crops, largest = sum(sizes), max(sizes) * self.itemsize
        views = (2 if config.symmetric else 1) * crops * self.itemsize
        if self.on_cpu:
            fixed += LIBRARIES + self.parameters  # the convolutions keep the weights in an order of their own
            fixed += self.workers * (LOADED_AHEAD * crops + PROCESS)
        return fixed + views + crops + max(int(self.overhead * step), int(WORK_OF_VIEWS * largest))

    def largest(self, available: int) -> int:
        """The most groups at a time that fit, or fewer where that takes no more pieces; 0: not even one does."""
        least = self.groups if self.config.whole_because else 1
        fitting = next((n for n in range(self.groups, least - 1, -1) if self.needed(n) <= SHARE * available), 0)
        return fitting and -(-self.groups // -(-self.groups // fitting))


def plan(training: Training, workers: int, note: Callable[[str], None], cached: int = 0) -> Plan:
    """Set `training.groups_at_once`, the same on all ranks, and say it; called by all ranks before the first step.

    cached: bytes of this machine that `--cache ram` is about to take.
    Raises `MocoembedError` when not even one group at a time fits, or not what `--groups-at-once` says.
    """
    config, ranks, groups = training.config, training.ranks, training.groups
    available = available_to(training.compute.device, ranks.local_size, cached)
    mine = _of(training, workers, available)
    given = min(config.groups_at_once or groups, groups)
    if config.groups_at_once is None and available is not None:
        given = mine.largest(available)
    rows = ranks.objects((given, available, mine.needed(max(1, given))))
    at_once = min(one for one, _, _ in rows)
    left = min((one for _, one, _ in rows if one is not None), default=None)
    if not at_once or (left is not None and max(needed for _, _, needed in rows) > SHARE * left):
        text = ranks.from_first(lambda: _refusal(mine, training, left or 0, at_once, cached))
        raise ranks.agreed(MocoembedError(text))
    training.groups_at_once = at_once
    there = "" if left is None else f", {shown(left)} available"
    text = f"memory: a step needs about {shown(mine.needed(groups))}{there}"
    if at_once < groups:
        text = (f"memory: all {_groups(groups)} at once would need {shown(mine.needed(groups))}{there}: computing "
                f"{at_once} at a time ({shown(mine.needed(at_once))}), with the same result")
    note(text + (f", for each of {ranks.size} processes" if ranks.size > 1 else ""))
    return mine


def _groups(count: int) -> str:
    return counted(count, "BatchNorm group")


def available_to(device: torch.device, sharing: int, cached: int = 0) -> int | None:
    """Bytes that this process, one of `sharing` on its machine, may still take on its device.

    cached: bytes that a cache is about to take of the machine's memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    available = available_memory(sharing)
    return None if available is None else max(0, available - cached // sharing)


def least_needed(config: PretrainConfig, images: int, processes: int, workers: int, on_cpu: bool) -> int:
    """Bytes of a process with one BatchNorm group at a time where that can be: all of it, and without a trial.

    0 where the network is not known, or takes no images of that size.
    """
    try:
        encoder, of_trial, itemsize = _nowhere_measured(config)
    except NO_SUCH_NETWORK:
        return 0
    one, separate = _bytes(encoder.parameters()), config.dictionary == "end-to-end" and config.key_encoder == "separate"
    plan = Plan(config, processes, 3 * one if separate else one, of_trial, OVERHEAD["cpu" if on_cpu else "cuda"],
                itemsize, workers, on_cpu)
    encoders = 2 if separate or config.dictionary == "queue" else 1
    keys = {"queue": config.queue_size, "memory-bank": images}.get(config.dictionary, 0)
    at_once = plan.groups if config.whole_because else min(plan.groups, config.groups_at_once or 1)
    return plan.needed(at_once) + encoders * one + 4 * config.dim * keys


def _bytes(parameters) -> int:
    return sum(one.numel() * one.element_size() for one in parameters)


def _of(training: Training, workers: int, available: int | None) -> Plan:
    """The plan of a run as it is configured, by a trial on its device, or, where not even that fits, without one."""
    config, compute, encoder = training.config, training.compute, training.method.encoder_q
    trained = _bytes(one for group in training.optimizer.param_groups for one in group["params"])
    one = _bytes(encoder.parameters())
    on_cpu = compute.device.type == "cpu"

    def planned(of_trial: Measured) -> Plan:
        return Plan(config, training.ranks.size, 2 * trained - one, of_trial, OVERHEAD[compute.device.type],
                    compute.dtype.itemsize, workers, on_cpu)

    image = 3 * max(config.view_sizes) ** 2 * compute.dtype.itemsize
    if on_cpu and available is not None and MORE * image * MOST_FOR_A_PIXEL + 4 * one > available:
        computed = measured(encoder, config, _nowhere(compute.precision))
        if OVERHEAD["cpu"] * computed.of(MORE) + one > SHARE * available:
            return planned(computed)
    try:
        return planned(measured(encoder, config, compute))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return planned(measured(encoder, config, _nowhere(compute.precision)))


def _nowhere(precision: str) -> Compute:
    """A device on which tensors have shapes and no memory."""
    return Compute(torch.device("meta"), "fp64" if precision == "fp64" else "fp32")


def _refusal(mine: Plan, training: Training, left: int, at_once: int, cached: int) -> str:
    """What does not fit, with the figures, and what would."""
    shown_groups = mine.groups if mine.config.whole_because else max(1, at_once)
    needed = mine.needed(shown_groups)
    why = f" ({mine.config.whole_because})" if mine.config.whole_because else ""
    beside = f" beside the {shown(cached)} of --cache ram" if cached else ""
    return (f"Memory: a step with {_groups(shown_groups)} at a time{why} needs {shown(needed)}, and {shown(left)} are "
            f"available{beside}. What would fit: {advice(mine, training, left, shown_groups)}.")


def advice(mine: Plan, training: Training, available: int, at_once: int) -> str:
    """Options that make a step fit into so many bytes, each alone, with what it then needs.

    at_once: groups at a time that do not fit.
    """
    fitting = [f"{option} ({shown(other.needed(other.largest(available)))})"
               for option, other in _others(mine, training, available, at_once) if other.largest(available)]
    return "; ".join(fitting) or "none of these options alone; use a smaller --arch, --width and --image-size together"


def _others(mine: Plan, training: Training, available: int, at_once: int) -> Iterator[tuple[str, Plan]]:
    """Plans that differ in one option, the nearest that may fit first; of several values of one option see `_first`."""
    config = mine.config
    if 0 < (n := mine.largest(available)) < at_once:
        yield f"--groups-at-once {n}", mine
    if config.dictionary == "end-to-end":
        queue = dataclasses.replace(mine.config, dictionary="queue", key_encoder="shared")
        shared = "" if config.key_encoder == "shared" else " --key-encoder shared"
        yield f"--dictionary queue{shared}", dataclasses.replace(mine, config=queue)
    if config.batchnorm == "sync":
        yield "--batchnorm shuffled", _with(mine, "batchnorm", "shuffled")
    yield from _first(available, ((f"--batch-size {size}", _with(mine, "batch_size", size)) for size in _batches(mine)))
    if not (config.dictionary == "end-to-end" or config.batchnorm == "sync"):
        yield from _first(available, ((f"--bn-groups {n}", _with(mine, "bn_groups", n)) for n in _finer(mine)))
    yield from _first(available, _measured_again(mine, "width", [w for w in WIDTHS if w < config.width]))
    yield from _first(available, _measured_again(mine, "image_size", [s for s in SIDES if s < config.image_size]))
    if config.precision == "fp64":
        yield from _measured_again(mine, "precision", ["fp32"])
    elif config.precision != "bf16" and OVERHEAD["cpu"] * mine.measured.of(MORE) <= SHARE * available:
        yield from _in_bf16(mine, training)


def _in_bf16(mine: Plan, training: Training) -> Iterator[tuple[str, Plan]]:
    """By a trial on the device, which fits in fp32: without one nobody knows what autocast casts."""
    compute = Compute(training.compute.device, "bf16")
    if compute.slowness():
        return
    try:
        of_trial = measured(training.method.encoder_q, mine.config, compute)
    except (MemoryError, RuntimeError):  # the device has no bf16, or no memory for it
        return
    yield "--precision bf16", dataclasses.replace(_with(mine, "precision", "bf16"), measured=of_trial)


def _first(available: int, others: Iterator[tuple[str, Plan]]) -> Iterator[tuple[str, Plan]]:
    """The first of them that fits, if one does."""
    for option, other in others:
        if other.largest(available):
            yield option, other
            return


def _with(mine: Plan, name: str, value) -> Plan:
    return dataclasses.replace(mine, config=dataclasses.replace(mine.config, **{name: value}))


def _batches(mine: Plan) -> list[int]:
    """Smaller batches that the groups and processes go into, the largest first."""
    groups = mine.config.bn_groups
    return [size for size in range(mine.config.batch_size - groups, groups, -groups)
            if size % mine.processes == 0 and size >= FEW * mine.processes]


def _finer(mine: Plan) -> list[int]:
    """Larger numbers of groups, of two images or more, the smallest first."""
    batch = mine.config.batch_size
    return [n for n in range(mine.config.bn_groups + 1, batch // 2 + 1)
            if batch % n == 0 and n % mine.processes == 0]


def _measured_again(mine: Plan, name: str, values: list) -> Iterator[tuple[str, Plan]]:
    """Plans with another value of an option that changes what an image takes."""
    for value in values:
        try:
            other = _with(mine, name, value)
            encoder, of_trial, itemsize = _nowhere_measured(other.config)
        except NO_SUCH_NETWORK:
            continue
        yield f"--{name.replace('_', '-')} {value:g}" if name != "precision" else f"--precision {value}", \
            dataclasses.replace(other, parameters=_bytes(encoder.parameters()), measured=of_trial,
                                itemsize=itemsize)


def _nowhere_measured(config: PretrainConfig) -> tuple[Encoder, Measured, int]:
    """The config's encoder, which takes no memory, what a step of it would take, and the bytes of a number in it."""
    compute = _nowhere(config.precision)
    with torch.device("meta"):
        encoder = Encoder(encoder_spec(config), 1).to(compute.dtype)
    return encoder, measured(encoder, config, compute), compute.dtype.itemsize


@contextlib.contextmanager
def running_out_said(mine: Plan, training: Training) -> Iterator[None]:
    """Turn a lack of memory within the block into a `MocoembedError` with what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        at_once, step = training.groups_at_once, training.step
        needed = mine.needed(at_once)
        halved = 0 if mine.config.whole_because else int(mine.needed(max(1, at_once // 2)) / SHARE) + 1
        less = max(int(0.8 * needed), min(halved, needed))
        if training.compute.device.type == "cuda":
            torch.cuda.empty_cache()
        raise MocoembedError(f"Out of memory after step {step}, with {_groups(at_once)} at a time (a step takes about "
                             f"{shown(needed)}). What was saved is kept. What would take less: "
                             f"{advice(mine, training, less, at_once)}.") from error
