"""Pretraining on a CPU: one process with all cores as threads against two processes, in images/s.

    python -m benchmarks.cpu_processes flowers cifar/train --rounds 5

Both have the same BatchNorm groups, and so the same mathematics; they take turns. Three networks: the cheapest that
`--recipe auto` takes for photographs (ResNet-18 of width 0.25, 64 pixels), that of small images (width 0.5, 32 pixels,
end-to-end), and the same at full width with a queue. images/s: the median of the lines after the first third of a run.
Expected: the fewer multiplications a layer has, the more do two processes gain, for threads meet after every layer.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile

import click

from benchmarks.reproduce.half_hour import settled_rate

NETWORKS = {
    "width 0.25, 64 pixels, batch 64": (0, ["--recipe", "small", "--bn-groups", "2"]),
    "width 0.5, 32 pixels, batch 128": (1, ["--recipe", "cifar10", "--width", "0.5", "--stem", "3x3s2", "--dictionary",
                                            "end-to-end", "--batch-size", "128", "--bn-groups", "2",
                                            "--limit", "2560"]),
    "width 1, 32 pixels, batch 256": (1, ["--recipe", "cifar10", "--stem", "3x3s2", "--batch-size", "256",
                                          "--bn-groups", "4", "--limit", "1024"])}
PROCESSES = (1, 2)


def images_per_second(folder: str, options: list[str], processes: int) -> float:
    """Of two epochs on the CPU."""
    with tempfile.TemporaryDirectory() as workspace:
        subprocess.run([sys.executable, "-m", "mocoembed", "pretrain", folder, *options, "--cache", "ram", "--device",
                        "cpu", "--epochs", "2", "--run", "run", "--workspace", workspace, "--processes",
                        str(processes)], check=True, capture_output=True)
        return settled_rate(pathlib.Path(workspace))


@click.command()
@click.argument("flowers", type=click.Path(exists=True, file_okay=False))
@click.argument("cifar", type=click.Path(exists=True, file_okay=False))
@click.option("--rounds", default=5, show_default=True)
def main(flowers, cifar, rounds):
    """FLOWERS: photographs; CIFAR: training images of CIFAR-10."""
    for name, (place, options) in NETWORKS.items():
        rates = [[images_per_second((flowers, cifar)[place], options, count) for count in PROCESSES]
                 for _ in range(rounds)]
        ratios = sorted(two / one for one, two in rates)
        one, two = (statistics.median(column) for column in zip(*rates))
        click.echo(f"{name}: one process {one:.0f} images/s, two {two:.0f}, "
                   f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
