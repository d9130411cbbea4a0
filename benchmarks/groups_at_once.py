"""A training step all BatchNorm groups at once, against one group at a time: peak memory and images per second.

Every run is a process of its own, which sets up the training, asks the memory plan what a step needs (`predicted`),
and takes steps on ready crops, views included. `peak` is how far the process grew over what it had before the plan's
trial (VmHWM of /proc/self/status; on a GPU, what PyTorch's allocator took). Images per second are of all steps but the
first; where other work shares the machine, those per second of processor time tell more. The ways take turns.

    python benchmarks/groups_at_once.py --batch-size 64 --groups 8 --repeats 1
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

MIB = 1 << 20


def one_way(at_once: int, steps: int, options: dict) -> dict:
    """Take the steps here; bytes and images per second."""
    import torch
    from gpu_checks import made_up_batch
    from torch.utils.data._utils.pin_memory import pin_memory

    from mocoembed.config import PretrainConfig
    from mocoembed.model.precision import Compute
    from mocoembed.train.memory_plan import plan
    from mocoembed.train.run import set_up
    from mocoembed.train.step import make_views, training_step

    config = PretrainConfig.of("moco-v2", "images", mask_same_image=False, groups_at_once=at_once, **options)
    compute = Compute.of(config.device, config.precision)
    compute.tune()
    training = set_up(config, compute, 10 * config.batch_size)
    on_gpu = compute.device.type == "cuda"
    before = torch.cuda.memory_reserved() if on_gpu else _marked("VmRSS")
    predicted = plan(training, 0, lambda text: None).needed(at_once)
    times, of_processor = [], []
    with compute.keeping_memory():
        for step in range(steps):
            batch = made_up_batch(config, step)
            batch = pin_memory(batch) if on_gpu else batch
            begun, processor_begun = time.perf_counter(), time.process_time()
            training_step(training, make_views(batch, training), (), lambda numbers: None)
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - begun)
            of_processor.append(time.process_time() - processor_begun)
        after = torch.cuda.max_memory_reserved() if on_gpu else _kib("VmHWM")
    return {"peak": after - before, "predicted": predicted,
            "rate": config.batch_size / statistics.median(times[1:] or times),
            "processor": config.batch_size / statistics.median(of_processor[1:] or of_processor),
            "threads": torch.get_num_threads(), "torch": str(torch.__version__)}


def _marked(name: str) -> int:
    """The figure now, with the high-water mark begun anew."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _kib(name)


def _kib(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def main():
    """Print a line for each way, then how they compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--groups", type=int, default=8, dest="bn_groups")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=3, help="of each run; the first does not count for speed")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # groups at a time: one run, here, as JSON
    options = vars(parser.parse_args())
    steps, repeats, one = (options.pop(name) for name in ("steps", "repeats", "one"))
    if one:
        print(json.dumps(one_way(one, steps, options)))
        return
    found: dict[int, list[dict]] = {options["bn_groups"]: [], 1: []}
    for _ in range(repeats):
        for at_once, runs in found.items():
            told = subprocess.run([sys.executable, *sys.argv, "--one", str(at_once)], check=True,
                                  stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(told.stdout.splitlines()[-1]))
    facts = found[1][0]
    print(f"{options}, torch {facts['torch']}, {facts['threads']} threads, n = {repeats}")
    for at_once, runs in found.items():
        peaks, rates = [one["peak"] / MIB for one in runs], [one["rate"] for one in runs]
        print(f"{at_once} at a time: peak {statistics.median(peaks):.0f} MiB ({min(peaks):.0f} to {max(peaks):.0f}"
                   f"), predicted {runs[0]['predicted'] / MIB:.0f} MiB; {statistics.median(rates):.2f} images/s "
                   f"({min(rates):.2f} to {max(rates):.2f}), "
                   f"{statistics.median(one['processor'] for one in runs):.2f} images per second of processor")
    whole, pieces = ({name: statistics.median(one[name] for one in runs) for name in ("peak", "rate", "processor")}
                     for runs in found.values())
    print(f"one at a time: {pieces['peak'] / whole['peak']:.2f} of the memory, "
               f"{pieces['rate'] / whole['rate']:.2f} of the speed ({pieces['processor'] / whole['processor']:.2f} by "
               "processor time)")


if __name__ == "__main__":
    main()
