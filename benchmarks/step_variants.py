"""What would make a training step on a CPU faster? Every idea in turn with the step as it is, on ready tensors.

    python -m benchmarks.step_variants step-variants.jsonl                    all cases; hours: see benchmarks/README.md
    python -m benchmarks.step_variants step-variants.jsonl --case cifar-64    one; may be given again
    python -m benchmarks.step_variants step-variants.jsonl --report           the tables of what there is

A round is one step of every variant, one after another, each with weights of its own. Every step is a line of the
file, written at once: stop it at any time and run it again, and it goes on with what is missing (the first steps of a
variant, which do not count, are done again). `loss` is that of the variant's first step, by which one sees whether it
computes the same. Variants that differ by environment are processes of their own, which take turns with the others and
are stopped (SIGSTOP) between their turns: threads that wait actively would take a core. Tiny and real rounds, and those
of another processor or torch, do not go into one file.

A batch of 256 at 224 pixels is not among the cases: it takes 27 GB. How long oneDNN spends on converting layouts
(`--reorders`) is the most that keeping the converted weights could gain.
"""

import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the mocoembed command does

import click

from benchmarks.machine import about

ROOT = pathlib.Path(__file__).parent.parent
AS_IT_IS = "as it is"
CIFAR, R50 = {"recipe": "cifar10"}, {"recipe": "moco-v2"}
CASES = {"cifar-64": {**CIFAR, "batch_size": 64}, "cifar-256": {**CIFAR, "batch_size": 256},
         "r50-96-64": {**R50, "image_size": 96, "batch_size": 64},
         "r50-96-256": {**R50, "image_size": 96, "batch_size": 256}, "r50-224-64": {**R50, "batch_size": 64}}
QUICK = {"width": 0.125, "stem": "3x3s2", "batch_size": 8, "bn_groups": 2, "queue_size": 16, "image_size": 32}
ENVIRONMENTS = {"threads wait actively": {"OMP_WAIT_POLICY": "ACTIVE"},
                "threads bound to cores": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
                "oneDNN without AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX2"}}
IN_ALL_ENVIRONMENTS = ("cifar-64", "cifar-256", "r50-96-64")  # a process each would take too much memory for the others
# What to change in the config, besides what `step_variants_steps` does to the step.
SYMMETRIC = {"symmetric": True}
VARIANTS: dict[str, dict] = {
    AS_IT_IS: {}, "compiled": {"compile": True}, "bf16": {"precision": "bf16"},
    "bf16, compiled": {"precision": "bf16", "compile": True}, "plain layout": {}, "keys in inference mode": {},
    "keys in inference mode, compiled": {}, "oneDNN multiplies in bf16": {}, "symmetric": SYMMETRIC,
    "symmetric, both views at once": SYMMETRIC,
    "symmetric, both views at once, compiled": {**SYMMETRIC, "compile": True}}
AGAINST = {name: "symmetric" for name in VARIANTS if name.startswith("symmetric,")}


class Child:
    """A process that takes steps when it is asked to."""

    def __init__(self, case: str, quick: bool, environment: dict[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.step_variants", "-", "--serve", "--case", case,
             *(["--quick"] if quick else [])], env={**os.environ, **environment}, cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def step(self, variant: str) -> dict:
        """What a step of it gave: `seconds` and `loss`, or `left_out` with the reason. Then the process rests."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(variant + "\n")
        self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise click.ClickException(f"the process of {variant!r} ended with status {self._process.wait()}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def end(self):
        """End it."""
        self._process.kill()
        self._process.wait()


def serve(case: str, quick: bool):
    """Take a step of each variant that is named on standard input."""
    from benchmarks.step_variants_steps import Steps

    steps = Steps(config_of(case, quick), VARIANTS)
    for line in sys.stdin:
        print(json.dumps(steps.take(line.strip())), flush=True)


def config_of(case: str, quick: bool):
    """The config of a case."""
    from mocoembed.config import PretrainConfig

    changes = {**CASES[case], "device": "cpu", "precision": "fp32", "bn_groups": 8, **(QUICK if quick else {})}
    return PretrainConfig.of(changes.pop("recipe"), "none", **changes)


def measure(case: str, path: pathlib.Path, variants: tuple[str, ...], rounds: int, quick: bool):
    """Add the rounds of a case that are missing; `UsageError` when the file has rounds of another kind."""
    lines, where = lines_of(path), {"quick": quick, **about()}
    for line in lines:
        if other := {key: line.get(key) for key in where if line.get(key) != where[key]}:
            raise click.UsageError(f"{path} has rounds of {other}; now it is {where}. Give another file.")
    done = {(one["round"], one["variant"]) for one in lines if one["case"] == case}
    names = [name for name in variants if name in VARIANTS or case in IN_ALL_ENVIRONMENTS]
    children: dict[str, Child] = {}
    try:
        for turn in range(rounds):
            for name in (name for name in names if (turn, name) not in done):
                place = name if name in ENVIRONMENTS else ""
                if place not in children:
                    children[place] = Child(case, quick, ENVIRONMENTS.get(place, {}))
                found = children[place].step(AS_IT_IS if place else name)
                with open(path, "a") as file:
                    file.write(json.dumps({"case": case, "round": turn, "variant": name, **found, **where}) + "\n")
                click.echo(f"{case}, round {turn + 1} of {rounds}, {name}: {found}", err=True)
    finally:
        for child in children.values():
            child.end()


def lines_of(path: pathlib.Path) -> list[dict]:
    """What has been measured; a last line that was cut off does not count, and is cut off."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        text = text[:text.rfind("\n") + 1]
        path.write_text(text)
    return [json.loads(line) for line in text.splitlines()]


def report(path: pathlib.Path) -> str:
    """A table for each case: how many times as fast as the step as it is, by round."""
    lines, tables = lines_of(path), []
    for case in dict.fromkeys(one["case"] for one in lines):
        rows = ["| " + case + " | n | seconds, median (lowest to highest) | times as fast | first loss |",
                "| --- | --- | --- | --- | --- |"]
        own = [one for one in lines if one["case"] == case]
        for name in dict.fromkeys(one["variant"] for one in own):
            found = {one["round"]: one for one in own if one["variant"] == name}
            if reasons := {one["left_out"] for one in found.values() if "left_out" in one}:
                rows.append(f"| {name} | | left out: {reasons.pop()} | | |")
                continue
            seconds = [one["seconds"] for one in found.values()]
            base = {one["round"]: one["seconds"] for one in own if one["variant"] == AGAINST.get(name, AS_IT_IS)}
            ratios = [base[turn] / one["seconds"] for turn, one in found.items() if turn in base]
            rows.append(f"| {name} | {len(seconds)} | {spread(seconds)} | {spread(ratios) if ratios else ''} | "
                        f"{next(iter(found.values()))['loss']:.5f} |")
        tables.append("\n".join(rows))
    return "\n\n".join(tables)


def spread(values: list[float]) -> str:
    """Median, lowest, highest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def reorders(case: str, quick: bool) -> str:
    """The share of a step that oneDNN spends on converting layouts, as it says itself."""
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.step_variants", "-", "--serve", "--case", case, *(["--quick"] * quick)],
        env={**os.environ, "ONEDNN_VERBOSE": "profile_exec"}, cwd=ROOT, text=True, check=True, stdout=subprocess.PIPE,
        input=f"{AS_IT_IS}\n{AS_IT_IS}\n")
    return f"{case}: {shares(child.stdout.splitlines())}"


def shares(lines: list[str]) -> str:
    """Of the last step among oneDNN's lines: milliseconds of all its primitives, and of those that convert layouts."""
    steps = [place for place, line in enumerate(lines) if line.startswith("{")]
    step, last = json.loads(lines[steps[-1]]), lines[steps[-2] + 1:steps[-1]] if len(steps) > 1 else lines[:steps[-1]]
    times: dict[str, float] = {}
    for line in last:
        fields = line.split(",")
        if "exec" in fields[:4] and fields[0].startswith("onednn_verbose"):
            kind = fields[fields.index("exec") + 2]
            times[kind] = times.get(kind, 0.0) + float(fields[-1])
    whole = 1000 * step["seconds"]
    return (f"{times.get('reorder', 0.0):.1f} of {whole:.1f} ms convert layouts "
            f"({times.get('reorder', 0.0) / whole:.1%}); all of oneDNN {sum(times.values()):.1f} ms")


@click.command()
@click.argument("output", type=click.Path(path_type=pathlib.Path, dir_okay=False, allow_dash=True))
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)), help="Only this; repeatable.")
@click.option("--variant", "variants", multiple=True, type=click.Choice([*VARIANTS, *ENVIRONMENTS]),
              help="Only this; repeatable.")
@click.option("--rounds", default=7, show_default=True, help="Steps of each variant that count.")
@click.option("--quick", is_flag=True, help="Tiny sizes, to know that it works.")
@click.option("--report", "instead", flag_value="report", help="Print the tables, measure nothing.")
@click.option("--reorders", "instead", flag_value="reorders", help="Print oneDNN's time for layouts instead.")
@click.option("--serve", "instead", flag_value="serve", hidden=True)
def main(output, cases, variants, rounds, quick, instead):
    """Measure what is missing in OUTPUT (JSON lines), then print the tables."""
    if instead == "serve":
        serve(cases[0], quick)
        return
    if instead == "reorders":
        for case in cases or CASES:
            click.echo(reorders(case, quick))
        return
    for case in () if instead == "report" else cases or CASES:
        begun = time.monotonic()
        measure(case, output, variants or (*VARIANTS, *ENVIRONMENTS), rounds, quick)
        click.echo(f"{case}: {time.monotonic() - begun:.0f} s", err=True)
    click.echo(report(output))


if __name__ == "__main__":
    main()
