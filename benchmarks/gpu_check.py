"""Is everything right on this GPU, and how fast is it? One script for a machine that was just given to you.

    python benchmarks/gpu_check.py                          a GPU: at most about eight minutes
    python benchmarks/gpu_check.py --device cpu --quick     the same code on tiny sizes, to know that it works

First the checks, each against the CPU, a formula or a run that was not interrupted; `--only` names some of them. Then,
unless `--no-speed`: images per second of `training_step` on ready tensors against the bare encoders (see
`pretrain_speed.py`), peak memory, and images per second of the loader. What would begin or end after `--seconds` is
left out, and said to be. Prints a table and, as the last line, all of it as one JSON object. Exit status 1 when a
check or a measurement failed.
"""

import contextlib
import json
import os
import pathlib
import platform
import signal
import statistics
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import click
import gpu_checks
import torch
from gpu_checks import Lab
from pretrain_speed import bare_step, our_step, timed
from reproduce.photographs import write_photographs

from mocoembed.config import PretrainConfig
from mocoembed.cores import cores
from mocoembed.data.images import scan
from mocoembed.data.loader import Places, view_batches, worker_count
from mocoembed.model.precision import Compute

ROUNDS, WARM_UP = 12, 4
LOADER_SECONDS = 15.0
# (recipe, precision, BatchNorm groups, compiled), the most telling first
CASES = [*((recipe, precision, 8, False) for recipe in ("cifar10", "moco-v2") for precision in ("tf32", "bf16")),
         *((recipe, "bf16", 1, compiled) for compiled in (False, True) for recipe in ("cifar10", "moco-v2")),
         *((recipe, precision, groups, True) for precision, groups in (("tf32", 1), ("bf16", 8))
           for recipe in ("cifar10", "moco-v2"))]
QUICK = {"width": 0.125, "batch_size": 16, "queue_size": 256, "image_size": 32}


@contextlib.contextmanager
def until(end: float):
    """End the block by a `TimeoutError` at that time of `time.monotonic`; again five seconds later, if it was lost."""
    def ring(number, frame):
        raise TimeoutError

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, end - time.monotonic()), 5.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def summary(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run_checks(lab: Lab, names: tuple[str, ...], show: Callable[[str], None]) -> dict[str, dict]:
    """What each check gave: `passed`, `seconds`, and the figure that it measured or why it failed."""
    results = {}
    for name, check in gpu_checks.CHECKS.items():
        if names and name not in names:
            continue
        begun = time.monotonic()
        try:
            passed, figure = True, check(lab)
        except Exception as error:  # any failure is a result
            passed, figure = False, summary(error)
        results[name] = {"passed": passed, "seconds": round(time.monotonic() - begun, 1), "figure": figure}
        show(f"{'ok    ' if passed else 'FAILED'}  {name:14} {results[name]['seconds']:6.1f} s  {figure}")
    return results


def speed_of(case: tuple[str, str, int, bool], lab: Lab, rounds: int) -> dict:
    """Images per second of ours and of the bare encoders, in turn, and ours' peak memory in GB."""
    recipe, precision, groups, compiled = case
    changes = {"precision": precision, "bn_groups": groups, "compile": compiled, **(QUICK if lab.quick else {})}
    config = PretrainConfig.of(recipe, "none", **changes)
    compute = Compute.of(lab.device, precision)
    compute.tune()
    torch.compiler.reset()  # else its limit of recompilations is reached, and it runs uncompiled
    size, on_gpu = config.image_size, compute.device.type == "cuda"
    views = [torch.randn(config.batch_size, 3, size, size, device=compute.device)
             .contiguous(memory_format=torch.channels_last) for _ in range(2)]
    rates, memory = {}, None
    for name, make in (("ours", our_step), ("bare", bare_step)):
        if on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        step = make(config, compute)
        seconds = [timed(step, views, compute.device) for _ in range(WARM_UP + rounds)][WARM_UP:]
        rates[name] = [config.batch_size / one for one in seconds]
        if on_gpu and name == "ours":
            memory = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        del step
    median = {name: statistics.median(values) for name, values in rates.items()}
    return {"recipe": recipe, "batch": config.batch_size, "precision": precision, "groups": groups,
            "compiled": compiled, "images_per_second": round(median["ours"], 1),
            "lowest": round(min(rates["ours"]), 1), "highest": round(max(rates["ours"]), 1),
            "bare": round(median["bare"], 1), "of_bare": round(median["ours"] / median["bare"], 3), "peak_gb": memory}


def measure_speed(lab: Lab, end: float, show: Callable[[str], None]) -> list[dict]:
    """`speed_of` all cases for which there is time and memory."""
    show(f"{'recipe':8} {'batch':>5} {'precision':9} {'groups':>6} {'compiled':8} {'images/s':>9} "
         f"{'(lowest to highest)':>20} {'bare':>9} {'of bare':>7} {'peak GB':>8}")
    rows = []
    for case in [*CASES[:5], CASES[6]] if lab.quick else CASES:
        try:
            with until(end):
                row = speed_of(case, lab, 3 if lab.quick else ROUNDS)
        except Exception as error:  # a compiler makes its own of a TimeoutError
            late, full = time.monotonic() >= end, isinstance(error, torch.OutOfMemoryError)
            reason = "no time" if late else "not enough memory" if full else summary(error)
            rows.append({"case": case, "left_out" if late or full else "failed": reason})
            show(f"{case}: {reason}")
            continue
        rows.append(row)
        show(f"{row['recipe']:8} {row['batch']:5} {row['precision']:9} {row['groups']:6} "
             f"{'yes' if row['compiled'] else 'no':8} {row['images_per_second']:9.1f} "
             f"{row['lowest']:9.1f} to {row['highest']:7.1f} {row['bare']:9.1f} {row['of_bare']:7.2f} "
             f"{row['peak_gb'] if row['peak_gb'] is not None else '-':>8}")
    return rows


def measure_loader(lab: Lab, show: Callable[[str], None]) -> dict:
    """Images per second, two crops of 224 pixels of each, as pretraining loads them."""
    folder = lab.folder / "photographs"
    write_photographs(folder, 32 if lab.quick else 256)
    listing = scan(folder)
    batch_size = 8 if lab.quick else 128
    config = PretrainConfig.of("moco-v2", str(folder), batch_size=batch_size, bn_groups=1, epochs=1000)
    workers = min(worker_count(None, 1000), 2 if lab.quick else 16)
    on_gpu = lab.device != "cpu"
    batches = view_batches(listing, config, Places(len(listing), config, 0), workers, on_gpu)
    done, begun = 0, None
    for number, batch in enumerate(batches):
        if number == 4 * workers:  # what was loaded ahead is used up
            begun = time.monotonic()
        elif begun:
            done += len(batch.rows)
        if begun and time.monotonic() - begun > (1.0 if lab.quick else LOADER_SECONDS):
            break
    rate = done / (time.monotonic() - begun)
    size = statistics.mean(file.stat().st_size for file in folder.iterdir())
    show(f"loader: {rate:.0f} images/s (500 x 400 JPEG of {size / 1e3:.0f} kB, two crops of 224 pixels), {workers} "
         f"workers, {cores()} cores")
    return {"images_per_second": round(rate, 1), "workers": workers, "file_kb": round(size / 1e3)}


@click.command()
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--quick", is_flag=True, help="Tiny sizes, few rounds.")
@click.option("--only", default="", help=f"Checks, separated by commas: {', '.join(gpu_checks.CHECKS)}.")
@click.option("--speed/--no-speed", default=True, help="Measure after the checks.")
@click.option("--seconds", default=440.0, show_default=True, help="After this long no more is measured.")
def main(device, quick, only, speed, seconds):
    """Check, measure, print a table and a JSON line; exit status 1 when a check failed."""
    names = tuple(filter(None, only.split(",")))
    if unknown := [name for name in names if name not in gpu_checks.CHECKS]:
        raise click.UsageError(f"--only {unknown[0]}: must be one of {', '.join(gpu_checks.CHECKS)}")
    end = time.monotonic() + seconds
    chosen = Compute.of(device, "fp32").device
    gpu = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else None
    machine = {"device": str(chosen), "gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda,
               "python": platform.python_version(), "cores": cores(), "quick": quick}
    click.echo("  ".join(f"{name} {value}" for name, value in machine.items()))
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(str(chosen), pathlib.Path(folder), quick)
        report = {**machine, "checks": run_checks(lab, names, click.echo)}
        if speed:
            report["loader"] = measure_loader(lab, click.echo)
            report["speed"] = measure_speed(lab, end, click.echo)
    failed = [name for name, result in report["checks"].items() if not result["passed"]]
    failed += [" ".join(map(str, row["case"])) for row in report.get("speed", ()) if "failed" in row]
    click.echo(json.dumps({**report, "failed": failed}))
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
