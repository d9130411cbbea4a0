"""Everything that is to be known of a GPU, by one command that can be stopped and run again: `make gpu`.

    make gpu                            all of it: an hour or two on one GPU, by estimate
    make gpu SECONDS=540                as much as fits into nine minutes; again and again until it is done
    make gpu GPU_OPTIONS='--cifar cifar'
    python -m benchmarks.reproduce.gpu results --device cpu --quick      the same code on tiny sizes

Pieces, each kept as one JSON file in OUTPUT/pieces and not run again:

- the checks of `gpu_check.py`;
- images/s of a step of R50 at 224 in bf16 and fp16 on ready tensors, against the bare encoders, the authors' code
  (--official: a checkout of github.com/facebookresearch/moco at 132aea9; its newest commit is empty) and lightly's.
  `make gpu` gets both, if there is a network; what could not be measured without them is measured when they are there;
- images/s from JPEG files by the number of loading processes; embedding against the bare network; FAISS on the GPU;
- the authors' CIFAR-10 demo, asymmetric and symmetric, on the original pixels (downloaded by torchvision unless --cifar
  has a folder with `train` and `test`; from JPEG files expect one to two points less).

A pretraining that is stopped goes on where it was. Remove a piece's file to measure it again.

After every call OUTPUT/gpu.json and OUTPUT/gpu.md have what there is. Exit status: 0 all done, 1 a piece failed, 3
there is more to do.

What to expect, written before any of it ran: all checks pass; 82.6 +- 0.7 and 85.3 +- 0.7 % on CIFAR-10; a step at
least twice as fast as the authors' code as it is, which uses TF32 at best, and 1.2 times lightly's; views
from JPEG files slower than the steps with fewer than about 16 cores.
"""

import gc
import json
import os
import pathlib
import platform
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import click
import torch

from benchmarks.reproduce.gpu_pieces import PIECES, Lab, LeftOut, OutOfTime
from benchmarks.reproduce.queue_of_work import MORE_TO_DO
from mocoembed import __version__
from mocoembed.cores import cores
from mocoembed.files import write_bytes, write_json
from mocoembed.model.precision import Compute

LEAST_SECONDS = {"cifar-asymmetric": 90.0, "cifar-symmetric": 90.0}  # that must be left for a piece to begin
LEAST_OF_OTHERS = 400.0  # as a piece that is not a pretraining goes on to its end


def machine(device: str) -> dict:
    """What the figures were measured on."""
    chosen = Compute.of(device, "fp32").device
    gpu = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else None
    return {"device": chosen.type, "gpu": gpu, "cores": cores(), "torch": str(torch.__version__),
            "cuda": torch.version.cuda, "python": platform.python_version(), "mocoembed": __version__}


def run_piece(name: str, lab: Lab) -> str | None:
    """Run one piece and keep what it gives; why it is not done, if so."""
    begun = time.monotonic()
    kept = lab.output / "pieces" / f"{name}.json"
    try:
        result: dict = {"rows": PIECES[name](lab)}
    except LeftOut as reason:
        result = {"rows": [], "left_out": str(reason)}
    except torch.OutOfMemoryError:
        result = {"rows": [], "left_out": "not enough memory"}
    except OutOfTime as reason:
        return f"not finished: {reason}"
    except Exception as error:  # the other pieces can still be run
        return f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    finally:  # a pretraining in a process of its own would find the memory that this one keeps taken
        gc.collect()
        torch.cuda.empty_cache()
    write_json(kept, {"piece": name, "quick": lab.quick, "seconds": round(time.monotonic() - begun, 1),
                      "machine": machine(lab.device), "means": lab.means(), **result})
    return None


def report(output: pathlib.Path, unfinished: dict[str, str]):
    """Write gpu.json and gpu.md from the pieces there are."""
    pieces = [json.loads((output / "pieces" / f"{name}.json").read_text()) for name in PIECES
              if (output / "pieces" / f"{name}.json").exists()]
    write_json(output / "gpu.json", {"pieces": pieces, "unfinished": unfinished})
    lines = ["| what | measured | published or aimed at | by whom |", "| --- | --- | --- | --- |"]
    lines += [f"| {one['what']} | {'' if one['figure'] is None else format(one['figure'], 'g')} {one['unit']} | "
              f"{one['expected']} | {one['source']} |" for piece in pieces for one in piece["rows"]]
    machines = {json.dumps(piece["machine"], sort_keys=True) for piece in pieces}
    notes = [f"- {piece['piece']}: left out: {piece['left_out']}" for piece in pieces if "left_out" in piece]
    notes += [f"- {name}: {reason}" for name, reason in unfinished.items()]
    notes += ["- Tiny sizes (--quick): no figure here says anything."] if any(one["quick"] for one in pieces) else []
    notes += [f"- Machine: {one}" for one in sorted(machines)]
    write_bytes(output / "gpu.md", "\n".join([*lines, "", *notes, ""]).encode())


@click.command()
@click.argument("output", type=click.Path(path_type=pathlib.Path), default="gpu-results")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--quick", is_flag=True, help="Tiny sizes, to know that it works.")
@click.option("--seconds", default=0.0, help="Stop after about so many; 0: when all is done.")
@click.option("--cifar", type=click.Path(exists=True, file_okay=False), help="Folder with train and test.")
@click.option("--official", type=click.Path(exists=True, file_okay=False), help="Checkout of the authors' code.")
@click.option("--piece", "wanted", multiple=True, type=click.Choice(list(PIECES)), help="Only this; repeatable.")
def main(output, device, quick, seconds, cifar, official, wanted):
    """Run what has not been run yet, until the time is over; write OUTPUT/gpu.json and OUTPUT/gpu.md."""
    end = time.monotonic() + (seconds or 1e6)
    chosen = str(Compute.of(device, "fp32").device)
    if chosen == "cpu" and not quick:
        raise click.UsageError("There is no GPU here. Add --device cpu --quick to try the code on tiny sizes.")
    (output / "pieces").mkdir(parents=True, exist_ok=True)
    lab = Lab(chosen, quick, output.resolve(), cifar, official, end)
    unfinished: dict[str, str] = {}
    for name in wanted or PIECES:
        kept = output / "pieces" / f"{name}.json"
        if kept.exists():
            found = json.loads(kept.read_text())
            if found["quick"] != quick:
                how = "without" if quick else "with"
                raise click.UsageError(f"{kept} was made {how} --quick. Give another OUTPUT.")
            more = set(lab.means()) - set(found["means"])
            if not more or all(one["figure"] is not None for one in found["rows"]):
                continue
            click.echo(f"{name}: again, as there is now: {', '.join(sorted(more))}", err=True)
        if end - time.monotonic() < LEAST_SECONDS.get(name, LEAST_OF_OTHERS):
            unfinished[name] = "not begun"
            continue
        click.echo(f"{name} ...", err=True)
        if reason := run_piece(name, lab):
            unfinished[name] = reason
            click.echo(f"{name}: {reason}", err=True)
        report(output, unfinished)
    report(output, unfinished)
    click.echo((output / "gpu.md").read_text())
    failed = any(reason.startswith("failed") for reason in unfinished.values())
    raise SystemExit(1 if failed else MORE_TO_DO if unfinished else 0)


if __name__ == "__main__":
    main()
