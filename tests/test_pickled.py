"""Files of torch.save from anywhere: foreign objects become inert, code is refused and never run."""

import argparse
import builtins
import collections
import os
import pathlib
import subprocess
import sys
import types
import typing

import numpy as np
import pytest
import torch

from mocoembed.errors import FormatError
from mocoembed.model.pickled import read_pickled


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def saved(request, tmp_path):
    """`saved(content)` writes a file as today's or as old versions of torch do, as the authors' files are."""
    def save(content):
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "c.pth"

    return save


@pytest.fixture
def omegaconf(monkeypatch):
    """Classes under OmegaConf's names, pickled as its are; the module is not there when the file is read."""
    made = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, name, base in [("dictconfig", "DictConfig", object), ("base", "ContainerMetadata", object),
                               ("nodes", "AnyNode", object)]:
        kind = type(name, (base,), {"__module__": f"omegaconf.{module}", "__getstate__": lambda self: dict(vars(self))})
        monkeypatch.setitem(sys.modules, f"omegaconf.{module}", types.ModuleType(f"omegaconf.{module}"))
        setattr(sys.modules[f"omegaconf.{module}"], name, kind)
        made[name] = kind
    config, node, metadata = made["DictConfig"](), made["AnyNode"](), made["ContainerMetadata"]()
    node._val, node._parent = 0.3, config
    metadata.ref_type, metadata.element_type, metadata.key_type = typing.Any, int, dict
    metadata.resolver_cache = collections.defaultdict(dict, {"a": {}})
    config._metadata, config._content = metadata, {"lr": node}
    return config


def test_objects_of_others_become_inert_and_weights_stay(saved, omegaconf, monkeypatch):
    content = {"state_dict": {"w": torch.arange(3.0)}, "args": argparse.Namespace(lr=0.03, schedule=[120, 160]),
               "hyper_parameters": omegaconf, "best": np.float64(61.9), "losses": np.arange(3),
               "where": pathlib.PurePosixPath("/data"), "counts": collections.defaultdict(list, {"a": [1]}), "epoch": 7}
    path = saved(content)
    for name in ("", ".dictconfig", ".base", ".nodes"):
        monkeypatch.delitem(sys.modules, f"omegaconf{name}")
    read = read_pickled(path)
    assert torch.equal(read["state_dict"]["w"], torch.arange(3.0))
    assert read["epoch"] == 7
    assert read["counts"] == {"a": [1]}
    kinds = {type(read[name]).__name__ for name in ("args", "hyper_parameters", "best", "losses", "where")}
    assert kinds == {"Inert"}
    assert vars(read["args"]) == {}
    assert not [one for one in torch.serialization.get_safe_globals() if isinstance(one, tuple)]  # nothing stays


class Calls:
    """Pickled as a call, which an ordinary unpickler runs."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(("function", "argument"), [
    (os.system, "touch {}"), (eval, "open('{}', 'w')"), (exec, "open('{}', 'w')"), (subprocess.getoutput, "touch {}"),
    (builtins.open, "{}"), (pathlib.Path.touch, "{}"), (__import__, "antigravity"), (torch.load, "{}")])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_malicious_file_runs_nothing_and_is_refused_in_one_line(saved, tmp_path, function, argument, hidden):
    bad = Calls(function, argument.format(tmp_path / "run"))
    path = saved({"state_dict": {"w": torch.zeros(1)}, "args": argparse.Namespace(x=bad) if hidden else bad})
    with pytest.raises(FormatError, match=r"it asks for '.*'\. Refused; none of its code was executed") as refusal:
        read_pickled(path)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    assert "antigravity" not in sys.modules


def test_what_is_no_dictionary_of_weights_is_refused(saved, tmp_path):
    with pytest.raises(FormatError, match="holds a list, not a dictionary"):
        read_pickled(saved([torch.zeros(1)]))
    with pytest.raises(FormatError, match=r"asks for 'torch\.nn\.modules\.linear\.Linear'"):
        read_pickled(saved(torch.nn.Linear(2, 2)))
    for data in (b"", b"hello", b"PK\x03\x04", b"\x80\x02}q"):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(FormatError, match=r"is not a checkpoint, or is damaged \(\w+\)"):
            read_pickled(tmp_path / "x")


def test_every_truncation_is_refused(saved):
    path = saved({"state_dict": {"w": torch.arange(300.0)}})
    data = path.read_bytes()
    for length in range(0, len(data) - 1, len(data) // 24):
        path.write_bytes(data[:length])
        with pytest.raises(FormatError):
            read_pickled(path)
