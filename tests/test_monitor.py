"""Lines of metrics that outlive an interruption, and writes that are refused."""

import subprocess
import sys

import pytest

from mocoembed.train.monitor import JsonLines


def test_json_lines_are_cut(tmp_path):
    lines = JsonLines(tmp_path / "m.jsonl")
    for step in range(4):
        lines.append({"step": step})
    lines.close()
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    lines = JsonLines(tmp_path / "m.jsonl")
    lines.keep(lambda line: line["step"] <= 2)
    lines.append({"step": 9})
    lines.close()
    assert (tmp_path / "m.jsonl").read_text() == '{"step": 0}\n{"step": 1}\n{"step": 2}\n{"step": 9}\n'


@pytest.mark.parametrize("most", [600, 3000])
def test_a_write_that_is_refused_is_one_line(tmp_path, most):
    """TensorBoard's thread prints no traceback, and closing does not hide what is said."""
    script = f"""if True:
        import contextlib, pathlib, resource
        from mocoembed.errors import MocoembedError
        from mocoembed.train.monitor import Recorder, StepReport
        report = StepReport(1, 0, 0.1, 5.0, 0.5, 4.0, 0.1, 0.2, 1.0, 100.0, 0.0, 0.0)
        try:
            with contextlib.closing(Recorder(pathlib.Path({str(tmp_path)!r}) / "run", 0)) as recorder:
                resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, resource.RLIM_INFINITY))
                for _ in range(1000):
                    recorder.record(report)
        except MocoembedError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.startswith(f"Cannot write {tmp_path}/run"), done
    assert done.stdout.endswith(": File too large.\n")
    assert not done.stderr
