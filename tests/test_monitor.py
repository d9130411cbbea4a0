"""Lines of metrics that outlive an interruption."""

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
