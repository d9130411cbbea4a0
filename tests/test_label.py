"""One rule for what is a label, wherever it stands."""

import json
import re

import pytest
from test_collections import labels, write_tar

from mocoembed.data.images import scan
from mocoembed.data.label import given_label
from mocoembed.errors import FormatError

GOOD = {"cat": "cat", " tulips\t": "tulips", "": None, "  ": None, None: None, 7: "7", -3: "-3", 0: "0",
        "true": "true", "null": "null", "\udcff": "\\xff", "roses, red": "roses, red"}
WRONG = ("true", "false", "0.5", "[1, 2]", '{"a": 1}', "[]")


def shard(folder, text):
    return write_tar(folder / "a.tar", [("x.jpg", b""), ("x.json", text.encode("utf-8", "surrogateescape"))])


def lines(folder, text):
    (folder / "a.jsonl").write_text(f'{{"path": "x.jpg", {text[1:]}')
    return folder / "a.jsonl"


@pytest.mark.parametrize("where", [shard, lines])
@pytest.mark.parametrize("value", GOOD)
def test_text_and_whole_numbers_are_labels(tmp_path, where, value):
    assert given_label(value, "here") == GOOD[value]
    assert labels(scan(where(tmp_path, json.dumps({"label": value})), "first")) == [GOOD[value]]


@pytest.mark.parametrize("where", [shard, lines])
@pytest.mark.parametrize("value", WRONG)
def test_nothing_else_is_one(tmp_path, where, value):
    name = {shard: r"a\.tar', member 'x\.json'", lines: r"a\.jsonl', line 1"}[where]
    collection = where(tmp_path, f'{{"label": {value}}}')
    message = rf"{name}: the label is {re.escape(value)}; it must be text, a whole number or null\."
    with pytest.raises(FormatError, match=message):
        scan(collection)
    assert labels(scan(collection, "none")) == [None]


def test_text_of_a_cls_member_and_of_a_table(tmp_path):
    for text, expected in ((" cat\r\n", "cat"), ("\ufeff7", "7"), ("\n", None), ("", None), ("true", "true")):
        write_tar(tmp_path / "a.tar", [("x.jpg", b""), ("x.cls", text.encode())])
        assert labels(scan(tmp_path / "a.tar")) == [expected]
        (tmp_path / "a.csv").write_text(f'label,path\n"{text}",x.jpg\n', newline="")
        assert labels(scan(tmp_path / "a.csv")) == [expected]
    write_tar(tmp_path / "a.tar", [("x.jpg", b""), ("x.cls", b"a\0b")])
    with pytest.raises(FormatError, match=r"member 'x\.cls': a label with a NUL byte"):
        scan(tmp_path / "a.tar")


def test_a_long_wrong_label_is_shortened_and_deep_json_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"the label is \[0, 0, .{50,60}\.\.\.; it must") as refusal:
        given_label([0] * 1000, "here")
    assert len(str(refusal.value)) < 200
    for where in (shard, lines):
        with pytest.raises(FormatError, match="not JSON"):
            scan(where(tmp_path, '{"label": ' + "[" * 100_000 + "}"))
