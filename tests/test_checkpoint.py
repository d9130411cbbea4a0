"""Checkpoints: committed by the manifest, checked when loaded, never half.

The crash tests fork a child that saves and dies, or is refused, at the n-th operation, for every n until it succeeds.
"""

import errno
import itertools
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import traceback
import warnings

import pytest
import torch

from mocoembed.errors import FormatError, MocoembedError
from mocoembed.files import sha256_file, write_json
from mocoembed.train.checkpoint import (
    KEPT,
    MANIFEST,
    current_checkpoint,
    delete_checkpoints,
    load_checkpoint,
    load_newest,
    require_fits,
    require_resumable,
    save_checkpoint,
)


def state(step):
    return {"step": step, "epoch": step // 2, "config": {"epochs": 3}, "model": {"w": torch.full((400,), float(step))}}


def whole(run):
    """The state of the newest checkpoint, which must not need a fall-back; `None` when there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_newest(run)
    if found is not None:
        assert torch.equal(found["model"]["w"], state(found["step"])["model"]["w"])
    return found


def names(run):
    return sorted(os.listdir(run))


def loadable(run):
    """Steps of the manifest's checkpoints; each must load."""
    entries = json.loads((run / MANIFEST).read_text())["checkpoints"] if (run / MANIFEST).exists() else []
    return [load_checkpoint(run / entry["file"], entry["sha256"])["step"] for entry in entries]


def fork(work) -> int:
    """The exit code of a child that does `work`; minus the signal's number if that ended it."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_operation(n, act, *, writes_only=False):
    """In this process, call `act` before the n-th opening, renaming, removing or fsync, and before all later ones."""
    count, fsync = itertools.count(1), os.fsync

    def one():
        if next(count) >= n:
            act()

    def audit(event, arguments):
        writes = event == "os.rename" or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes or (event in ("open", "os.remove", "os.mkdir") and not writes_only):
            one()

    def counted(descriptor):
        one()
        fsync(descriptor)

    os.fsync = counted
    sys.addaudithook(audit)


def limit_file_size(count, action):
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def run_of(tmp_path):
    """`run_of(*steps)` gives a new folder with the checkpoints that saving at those steps leaves."""
    numbers = itertools.count()

    def make(*steps):
        first = tmp_path / f"first-{steps}"
        if not first.exists():
            first.mkdir()
            for step in steps:
                save_checkpoint(first, state(step))
        return shutil.copytree(first, tmp_path / f"run-{next(numbers)}")

    return make


def test_the_newest_comes_back_and_the_last_few_are_kept(tmp_path):
    for step in (1, 2, 3, 4):
        entry = save_checkpoint(tmp_path, state(step))
    assert entry["file"] == "checkpoint-4.pt"
    assert current_checkpoint(tmp_path) == tmp_path / "checkpoint-4.pt"
    assert whole(tmp_path)["step"] == 4
    assert len(list(tmp_path.glob("*.pt"))) == KEPT == 2


def test_a_file_that_the_manifest_does_not_name_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / "checkpoint-9.pt").write_bytes(b"half")
    assert load_newest(tmp_path)["step"] == 1
    assert load_newest(tmp_path / "elsewhere") is None


def test_the_bytes_are_a_function_of_the_state(run_of):
    """So saving a step again replaces a file by an equal one."""
    one, other = run_of(3), run_of()
    assert fork(lambda: save_checkpoint(other, state(3))) == 0
    assert (one / "checkpoint-3.pt").read_bytes() == (other / "checkpoint-3.pt").read_bytes()


@pytest.mark.parametrize("before", [(), (1,), (1, 2), (1, 2, 3)], ids=len)
def test_killed_at_every_operation(run_of, before):
    for n in itertools.count(1):
        run = run_of(*before)
        old = {path: path.read_bytes() for path in run.glob("*.pt")}
        code = fork(lambda run=run, n=n: (at_operation(n, kill), save_checkpoint(run, state(4))))
        newest = whole(run)
        assert (newest or {"step": None})["step"] in (4, before[-1] if before else None)
        steps = loadable(run)
        assert len(steps) >= min(len(before), KEPT)
        assert all(path.read_bytes() == content for path, content in old.items() if path.exists())
        save_checkpoint(run, state(9))
        assert names(run) == sorted([MANIFEST, *(f"checkpoint-{step}.pt" for step in (9, *steps[:1]))])
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert newest["step"] == 4
    assert n > 12  # operations before it ran through


def test_killed_while_going_on_from_the_one_before_a_damaged_one(run_of):
    for n in itertools.count(1):
        run = run_of(1, 2, 3)
        (run / "checkpoint-3.pt").write_bytes(b"damaged")
        code = fork(lambda run=run, n=n: (at_operation(n, kill), save_checkpoint(run, state(3))))
        if code == 0:
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert load_newest(run)["step"] in (2, 3)
    assert loadable(run) == [3, 2]
    run = run_of(1, 2, 9)
    (run / "checkpoint-9.pt").write_bytes(b"damaged")
    save_checkpoint(run, state(3))  # the damaged one is not counted among the two that stay
    assert loadable(run) == [3, 2]


def test_killed_at_many_byte_counts(run_of):
    size = (run_of(4) / "checkpoint-4.pt").stat().st_size
    for count in [*range(0, size, 149), size - 1, size]:
        run = run_of(1, 2, 3)
        code = fork(lambda run=run, n=count: (limit_file_size(n, signal.SIG_DFL), save_checkpoint(run, state(4))))
        assert code == (0 if count == size else -signal.SIGXFSZ)
        assert (whole(run)["step"], loadable(run)) == ((4, [4, 3]) if code == 0 else (3, [3, 2]))
        save_checkpoint(run, state(9))
        assert len(names(run)) == 3


def test_the_manifest_killed_at_many_byte_counts(run_of):
    size = (run_of(3, 4) / MANIFEST).stat().st_size
    for count in range(0, size, 23):
        run = run_of(1, 2, 3)

        def save(run=run, count=count):
            sys.addaudithook(lambda event, arguments: event == "open" and str(arguments[0]).endswith(".tmp")
                             and MANIFEST in str(arguments[0]) and limit_file_size(count, signal.SIG_DFL))
            save_checkpoint(run, state(4))

        assert fork(save) == -signal.SIGXFSZ
        assert (whole(run)["step"], loadable(run)) == (3, [3, 2])
        save_checkpoint(run, state(9))
        assert len(names(run)) == 3


def test_deleting_killed_at_every_operation(run_of):
    for n in itertools.count(1):
        run = run_of(1, 2)
        code = fork(lambda run=run, n=n: (at_operation(n, kill), delete_checkpoints(run)))
        assert whole(run) is None or loadable(run) == [2, 1]
        if code == 0:
            break
    assert names(run) == []
    assert n > 3


def refused(run, prepare):
    """The message with which saving step 4 is refused in a child, empty when it is not; old files must not change."""
    before = {path: path.read_bytes() for path in run.glob("checkpoint-*.pt")}
    receiver, sender = os.pipe()

    def save():
        try:
            prepare()
            save_checkpoint(run, state(4))
        except MocoembedError as error:
            os.write(sender, str(error).encode())

    assert fork(save) == 0
    os.close(sender)
    with open(receiver) as pipe:
        message = pipe.read()
    if message:
        assert "\n" not in message
        assert all(path.read_bytes() == content for path, content in before.items())
    return message


def test_a_disk_that_is_full_from_the_nth_operation_on(run_of):
    def fail():
        raise OSError(errno.ENOSPC, "No space left on device")

    for n in itertools.count(1):
        run = run_of(1, 2, 3)
        message = refused(run, lambda n=n: at_operation(n, fail, writes_only=True))
        if not message:
            break
        assert message.startswith(f"No space left to write {run}/checkpoint")
        assert whole(run)["step"] in (3, 4)
        assert {2, 3} <= set(loadable(run)) or loadable(run) == [4, 3]
        assert not list(run.glob(".*"))
        save_checkpoint(run, state(4))
        assert loadable(run) == [4, 3]
        assert len(names(run)) == 3
    assert n > 8


def test_a_write_that_is_refused_at_many_byte_counts(run_of):
    size = (run_of(4) / "checkpoint-4.pt").stat().st_size
    run = run_of(1, 2, 3)
    for count in range(0, size, 149):
        message = refused(run, lambda count=count: limit_file_size(count, signal.SIG_IGN))
        assert message == f"Cannot write {run}/checkpoint-4.pt: File too large."
    save_checkpoint(run, state(4))
    assert loadable(run) == [4, 3]


def test_a_file_system_that_is_full(run_of, tmp_path):
    """A file system of 24 kB in a mount namespace of its own; the file is larger than its tensors by more than that."""
    mount = tmp_path / "small"
    mount.mkdir()
    script = f"""if True:
        import os, sys, torch
        from mocoembed.errors import MocoembedError
        from mocoembed.train.checkpoint import load_newest, save_checkpoint
        from pathlib import Path
        run = Path({str(mount)!r}) / "run"
        for step, number, size in (1, 1, 1), (2, 1, 1), (3, 200, 1), (4, 1, 20000):
            weights = {{str(i): torch.ones(size) for i in range(number)}}
            try:
                save_checkpoint(run, dict(step=step, epoch=0, config={{}}, model=weights))
            except MocoembedError as error:
                print(error)
        print(load_newest(run)["step"], *sorted(os.listdir(run)))
    """
    mounted = f"mount -t tmpfs -o size=24k small {mount}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mounted], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small file system")
    done = subprocess.run(["unshare", "-m", "sh", "-c", f'{mounted} && exec "$0" -c "$1"', sys.executable, script],
                          capture_output=True, text=True, check=True)
    full, too_large, found = done.stdout.splitlines()
    assert full.startswith(f"No space left to write {mount}/run/checkpoint-3.pt (0.0 MB free). Free some space")
    assert too_large.startswith(f"{mount}/run/checkpoint-4.pt needs 0.1 MB and {mount}/run has 0.0 MB free.")
    assert found == "2 checkpoint-1.pt checkpoint-2.pt checkpoint.json"


def test_a_damaged_one_falls_back_aloud_to_the_one_before(tmp_path):
    save_checkpoint(tmp_path, state(1))
    save_checkpoint(tmp_path, state(2))
    path = tmp_path / "checkpoint-2.pt"
    good = path.read_bytes()
    random_numbers = random.Random(0)
    cut = [good[:len(good) * i // 100] for i in range(100)]
    flipped = [bytearray(good) for _ in range(100)]
    for data in flipped:
        data[random_numbers.randrange(len(data))] ^= random_numbers.randrange(1, 256)
    for data in [*cut, *flipped]:
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=r"checkpoint-2.pt is damaged.*Falling back"):
            found = load_newest(tmp_path)
        assert found["step"] == 1
        assert torch.equal(found["model"]["w"], state(1)["model"]["w"])
        with pytest.raises(FormatError, match="damaged"):
            load_checkpoint(path)
    (tmp_path / "checkpoint-1.pt").unlink()
    with pytest.warns(UserWarning, match="Falling"), pytest.raises(FormatError, match=r"No checkpoint .* can be read"):
        load_newest(tmp_path)


def test_damage_is_found_without_a_manifest_too(tmp_path):
    """By the archive's own CRC-32; what it does not cover is headers, whose damage changes no tensor."""
    good = shutil.copy(save_in(tmp_path / "run"), tmp_path / "alone.pt")
    content, random_numbers = (tmp_path / "alone.pt").read_bytes(), random.Random(0)
    assert not load_checkpoint(good)["verified"]
    refusals = 0
    for _ in range(100):
        data = bytearray(content)
        data[random_numbers.randrange(len(data))] ^= random_numbers.randrange(1, 256)
        (tmp_path / "alone.pt").write_bytes(data)
        try:
            found = load_checkpoint(good)
        except FormatError:
            refusals += 1
        else:
            assert (found["step"], found["epoch"], found["config"]) == (2, 1, {"epochs": 3})
            assert torch.equal(found["model"]["w"], state(2)["model"]["w"])
    assert refusals > 40


def save_in(run):
    return run / save_checkpoint(run, state(2))["file"]


class Trap:
    """Calls something when it is unpickled; `call` is what `__reduce__` may return."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return tuple(iter(part) if isinstance(part, list) else part for part in self.call)


def test_pickles_from_strangers_are_not_run(tmp_path):
    save_checkpoint(tmp_path, state(1))
    entry = save_checkpoint(tmp_path, state(2))
    path, opened = tmp_path / "checkpoint-2.pt", tmp_path / "opened"
    python = f"open({str(opened)!r}, 'w')"
    traps = [Trap(os.system, (f"touch {opened}",)), Trap(eval, (python,)), Trap(exec, (python,)),
             Trap(open, (str(opened), "w")), Trap(subprocess.check_call, (["touch", str(opened)],)),
             Trap(pickle.loads, (pickle.dumps(Trap(eval, (python,))),)),
             Trap(dict, ((),), None, None, [("a", Trap(eval, (python,)))]),
             Trap(torch.load, (str(path),), {"a": Trap(os.system, (f"touch {opened}",))})]
    for trap in traps:
        hooked = torch.nn.Parameter(torch.zeros(1))
        hooked.trap = trap
        for value in (trap, [trap], {"w": [(0, {"x": trap})]}, {trap: 0}, hooked, {"w": hooked}):
            for new_format in (True, False):
                torch.save({**state(2), "format": 1, "model": value}, path, _use_new_zipfile_serialization=new_format)
                require_refusal(tmp_path, entry)
        for content in (pickle.dumps(trap), pickle.dumps({**state(2), "model": trap}, protocol=2)):
            path.write_bytes(content)
            require_refusal(tmp_path, entry)
    assert not opened.exists()
    eval(python)  # as the traps would have
    assert opened.exists()


def require_refusal(run, entry):
    """The newest file, whose hash agrees, is refused in one line, and the one before it loads."""
    path = run / entry["file"]
    write_json(run / MANIFEST, {"format": 1, "checkpoints": [
        {**entry, "sha256": sha256_file(path)}, {"file": "checkpoint-1.pt", "step": 1, "epoch": 0,
                                                 "sha256": sha256_file(run / "checkpoint-1.pt")}]})
    with pytest.raises(FormatError, match=r"^\S*/checkpoint-2.pt is damaged, or not a checkpoint .* \(\w+\)\.$"):
        load_checkpoint(path)
    with pytest.warns(UserWarning, match="Falling back"):
        assert load_newest(run)["step"] == 1


def test_newer_formats_and_foreign_files_are_refused(tmp_path):
    torch.save({**state(1), "format": 99}, tmp_path / "a.pt")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "b.pt")
    torch.save({**state(1), "format": "1"}, tmp_path / "c.pt")
    torch.save([1], tmp_path / "d.pt")
    for name, message in [("a.pt", "format 99; this version reads up to 1"), ("b.pt", "not a checkpoint"),
                          ("c.pt", "not a checkpoint"), ("d.pt", "not a checkpoint")]:
        with pytest.raises(FormatError, match=message):
            load_checkpoint(tmp_path / name)
    (tmp_path / MANIFEST).write_text(json.dumps({"format": 99}))
    with pytest.raises(FormatError, match="format 99"):
        load_newest(tmp_path)


def test_manifests_that_are_damaged_or_lead_elsewhere_are_refused(tmp_path):
    entry = save_checkpoint(tmp_path / "run", state(1))
    outside = {**entry, "file": "../run/checkpoint-1.pt"}
    for content in ({}, {"format": 1}, {"format": "1", "checkpoints": []}, {"format": 1, "checkpoints": {}},
                    {"format": 1, "checkpoints": [1]}, {"format": 1, "checkpoints": [{}]},
                    {"format": 1, "checkpoints": [outside]}, {"format": 1, "checkpoints": [{**entry, "step": "1"}]}):
        write_json(tmp_path / "run" / MANIFEST, content)
        with pytest.raises(FormatError, match=r"checkpoint\.json is damaged.*--fresh"):
            load_newest(tmp_path / "run")


def training(width=3, groups=1):
    """A network, its optimizer after one step, and the state that a checkpoint of them would hold."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.BatchNorm1d(width))
    parameters = list(network.parameters())
    split = [{"params": parameters[:2]}, {"params": parameters[2:]}] if groups == 2 else parameters
    optimizer = torch.optim.SGD(split, 0.1, momentum=0.9)
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()
    return network, optimizer, {"step": 7, "model": network.state_dict(), "optimizer": optimizer.state_dict()}


def test_what_fits_may_be_loaded():
    network, optimizer, saved = training()
    require_resumable(saved, network, optimizer)
    require_resumable(saved, network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))  # no momentum yet
    require_fits(saved["model"], network.state_dict(), "It")
    other = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    require_resumable(saved, other, torch.optim.SGD(other.parameters(), 0.1, momentum=0.9))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())  # it only looks
    other.load_state_dict(saved["model"])
    assert all(torch.equal(value, saved["model"][name]) for name, value in other.state_dict().items())
    assert not torch.equal(before["0.weight"], saved["model"]["0.weight"])


def spoiled(part, name, value):
    """A change of a state: `value` for one tensor, or without it for `None`."""
    def change(saved):
        tensors = saved["model"] if part == "model" else saved["optimizer"]["state"][part]
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return change


@pytest.mark.parametrize(("change", "message"), [
    (spoiled("model", "0.weight", None), r"0\.weight is missing"),
    (spoiled("model", "2.weight", torch.zeros(1)), r"2\.weight is not in this network"),
    (spoiled("model", "0.weight", torch.zeros(4, 2)), r"0\.weight is \(4, 2\) \S+, not \(3, 2\) torch\.float32"),
    (spoiled("model", "0.bias", torch.zeros(3, dtype=torch.float64)), r"0\.bias is \(3,\) torch\.float64"),
    (spoiled("model", "1.running_mean", torch.tensor([0.0, float("nan"), 0.0])), r"1\.running_mean .*not finite"),
    (spoiled("model", "0.bias", [0.0]), r"0\.bias is not a tensor"),
    (spoiled(0, "momentum_buffer", torch.zeros(9, 9)), r"optimizer\.0\.momentum_buffer is \(9, 9\)"),
    (spoiled(3, "momentum_buffer", torch.full((3,), float("inf"))), r"optimizer\.3\.momentum_buffer .*not finite"),
])
def test_what_does_not_fit_is_refused_and_nothing_copied(change, message):
    network, optimizer, saved = training()
    saved = {**saved, "model": {name: value + 1 for name, value in saved["model"].items()}}
    change(saved)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(FormatError, match=rf"^The checkpoint of step 7 does not fit this network: {message}.*\. "
                                          r"Use .*--fresh\.$"):
        require_resumable(saved, network, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_another_network_or_optimizer_is_refused():
    network, optimizer, _ = training()
    with pytest.raises(FormatError, match=r"0\.weight is \(5, 2\).*\(and \d+ more differences\)"):
        require_resumable(training(width=5)[2], network, optimizer)
    with pytest.raises(FormatError, match="an optimizer with other parameters"):
        require_resumable(training(groups=2)[2], network, optimizer)


def test_deleting_forgets_all(tmp_path):
    save_checkpoint(tmp_path, state(1))
    (tmp_path / ".checkpoint-7.pt.elsewhere-1.tmp").touch()
    delete_checkpoints(tmp_path)
    assert load_newest(tmp_path) is None
    assert names(tmp_path) == []
