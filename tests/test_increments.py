"""A second run over a changed collection: only what is new or changed is encoded, the rest stays bit for bit."""

import contextlib
import os
import pathlib
import shutil
import signal

import numpy as np
import pytest

from mocoembed.config import EmbedConfig, InfoConfig
from mocoembed.data.images import Listing, scan
from mocoembed.embed.extract import embed_images
from mocoembed.embed.plan import Plan, rows_by_path
from mocoembed.embed.publish import Counts
from mocoembed.embed.store import EmbeddingFile
from mocoembed.embed.work import WorkFile
from mocoembed.errors import (
    CollectionError,
    FormatError,
    Interrupted,
    MismatchError,
    MocoembedError,
    UsageError,
)
from mocoembed.files import write_error
from mocoembed.info import describe
from mocoembed.model.embedder import Embedder
from mocoembed.model.encoder_file import save_encoder
from mocoembed.workspace import Workspace


@pytest.fixture
def folder(tmp_path, make_images):
    return make_images(tmp_path / "p")


@pytest.fixture
def encoded(monkeypatch):
    """The number of images that went through the encoder, in each batch."""
    numbers, begin = [], Embedder.begin

    def counting(embedder, pixels):
        numbers.append(len(pixels))
        return begin(embedder, pixels)

    monkeypatch.setattr(Embedder, "begin", counting)
    return numbers


@pytest.fixture
def embed(tmp_path, make_encoder):
    """`embed(folder, progress=None, **settings)` in a workspace that has an encoder."""
    save_encoder(Workspace(tmp_path / "ws").newest_encoder, make_encoder())

    def run(folder, progress=lambda done, total: None, note=lambda text: None, **values):
        config = EmbedConfig(str(folder), **{
            "workspace": str(tmp_path / "ws"), "workers": 0, "device": "cpu", "batch_size": 5, **values})
        return embed_images(config, progress, note)

    return run


def change(path, text=b"x"):
    """Give an image other bytes."""
    path.write_bytes(path.read_bytes() + text)


def flip(path, *places):
    """Damage a bit of each of these bytes."""
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 4
    path.write_bytes(data)


@pytest.fixture
def dies_in(monkeypatch):
    """`with dies_in(name):` what is run in the block ends where it would call the function of that name."""
    @contextlib.contextmanager
    def dying(name):
        with monkeypatch.context() as patched:
            patched.setattr(name, lambda *arguments, **more: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                yield

    return dying


def content(path):
    """{path: (vector, everything else)} of an embeddings file."""
    with EmbeddingFile(path) as file:
        file.verify()
        return {name: (vector.tobytes(), facts.tobytes(), number) for name, vector, facts, number in zip(
            file.paths(), np.asarray(file.embeddings()), file.facts(), file.ids().tolist())}


def test_only_new_and_changed_images_are_encoded(embed, folder, encoded):
    first = embed(folder)
    assert first.counts == Counts(new=24, changed=0, unchanged=0, recognised=0, dropped=0, repeated=0)
    before = content(first.path)
    shutil.copy(folder / "red" / "000.png", folder / "red" / "copy.png")       # a copy: bytes that are known
    (folder / "green" / "001.jpg").rename(folder / "blue" / "moved.jpg")         # a move
    shutil.copy(folder / "blue" / "001.jpg", folder / "blue" / "003.jpg")       # changed, to bytes that are known
    change(folder / "blue" / "005.jpg")  # changed
    os.utime(folder / "blue" / "007.jpg", ns=(1, 1))                              # touched only
    (folder / "red" / "002.png").unlink()                                        # dropped
    new = (folder / "red" / "new.jpg", folder / "red" / "again.jpg")             # new, twice the same bytes
    for path in new:
        path.write_bytes((folder / "red" / "001.jpg").read_bytes() + b"new")
    encoded.clear()
    second = embed(folder)
    after = content(second.path)
    assert second.counts == Counts(new=2, changed=2, unchanged=20, recognised=2, dropped=1, repeated=1)
    assert sum(encoded) == 2  # blue/005.jpg, and one of the two new ones
    for name in before.keys() & after.keys() - {b"blue/003.jpg", b"blue/005.jpg", b"blue/007.jpg"}:
        assert after[name] == before[name]
    assert after[b"blue/moved.jpg"][0] == before[b"green/001.jpg"][0]
    assert after[b"red/copy.png"][0] == before[b"red/000.png"][0]
    assert after[b"blue/003.jpg"][0] == before[b"blue/001.jpg"][0]
    assert after[b"blue/007.jpg"][0] == before[b"blue/007.jpg"][0]
    assert after[b"blue/007.jpg"][1] != before[b"blue/007.jpg"][1]  # its time
    assert after[b"red/new.jpg"][0] == after[b"red/again.jpg"][0]
    assert after.keys() == before.keys() - {b"red/002.png", b"green/001.jpg"} | {
        b"blue/moved.jpg", b"red/copy.png", b"red/new.jpg", b"red/again.jpg"}
    whole = content(embed(folder, output=str(second.path.with_name("whole.h5"))).path)
    for name, (vector, facts, number) in whole.items():
        assert (facts, number) == after[name][1:]
        np.testing.assert_allclose(np.frombuffer(vector, np.float32), np.frombuffer(after[name][0], np.float32),
                                   atol=1e-6)


def test_nothing_changed_leaves_the_file_alone(embed, folder, encoded):
    first = embed(folder)
    state, number = first.path.stat(), sum(encoded)
    again = embed(folder)
    assert (again.counts.unchanged, again.embedded, sum(encoded)) == (24, 24, number)
    assert again.path.stat().st_mtime_ns == state.st_mtime_ns
    assert again.path.stat().st_ino == state.st_ino
    assert sorted(path.name for path in first.path.parent.iterdir() if path.name.startswith("embeddings")) == [
        "embeddings.h5"]


def test_images_only_dropped(embed, folder, encoded):
    first = embed(folder)
    before, number = content(first.path), sum(encoded)
    shutil.rmtree(folder / "green")
    second = embed(folder)
    assert (second.counts.dropped, second.listed, sum(encoded)) == (8, 16, number)
    assert content(second.path) == {name: row for name, row in before.items() if not name.startswith(b"green")}
    with EmbeddingFile(second.path) as file:
        assert file.label_names == ["blue", "red"]
        assert file.describe()["listed"] == 16


def test_what_failed_is_tried_again(embed, folder):
    good = (folder / "red" / "001.jpg").read_bytes()
    (folder / "red" / "001.jpg").write_bytes(good[:200])
    assert len(embed(folder).failed) == 1
    assert len(embed(folder).failed) == 1
    (folder / "red" / "001.jpg").write_bytes(good)
    mended = embed(folder)
    assert (mended.failed, mended.counts.new, mended.counts.unchanged) == ([], 1, 23)
    (folder / "red" / "001.jpg").write_bytes(good[:200])
    broken = embed(folder)
    assert [one.path for one in broken.failed] == [b"red/001.jpg"]
    assert broken.embedded == 23


def test_other_settings_refuse_to_mix(embed, folder, tmp_path, make_encoder):
    embed(folder)
    (folder / "red" / "000.png").unlink()
    save_encoder(tmp_path / "other.safetensors", make_encoder(seed=1))
    for values in ({"encoder": str(tmp_path / "other.safetensors")}, {"features": "projection"}):
        with pytest.raises(MismatchError, match=r"another (encoder|features).*--fresh.*--output"):
            embed(folder, **values)


def stop_at(number):
    """A `progress` that asks once to stop, when so many images are done; one more batch is finished."""
    asked = []

    def progress(done, total):
        if done >= number and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGTERM))

    return progress


def test_an_interrupted_increment_goes_on_to_the_same_bytes(embed, folder, tmp_path, make_images):
    first = embed(folder)
    shutil.copy(first.path, tmp_path / "other.h5")
    shutil.copytree(make_images(tmp_path / "q", seed=5), folder / "more")
    before = first.path.read_bytes()
    with pytest.raises(Interrupted, match="Stopped after 39 of 48 images"):
        embed(folder, stop_at(34))
    assert first.path.read_bytes() == before
    resumed = embed(folder)
    assert (resumed.resumed_from, resumed.counts.new) == (39, 24)
    whole = embed(folder, output=str(tmp_path / "other.h5"))
    assert whole.counts == resumed.counts
    assert resumed.path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("change", ["added", "removed", "batch size"])
@pytest.mark.parametrize("with_output", [False, True])
def test_a_collection_that_changes_after_an_interruption_costs_nothing(embed, folder, encoded, change, with_output,
                                                                       make_images, tmp_path):
    if with_output:
        shutil.move(folder / "green", tmp_path / "aside")
        embed(folder)
        shutil.move(tmp_path / "aside", folder / "green")
    encoded.clear()
    with pytest.raises(Interrupted):
        embed(folder, stop_at(20 if with_output else 10))
    done = sum(encoded)
    if change == "added":
        shutil.copy(make_images(tmp_path / "q", seed=5) / "red" / "000.png", folder / "blue" / "000a.png")
    elif change == "removed":
        (folder / "red" / "007.jpg").unlink()
    result = embed(folder, **({"batch_size": 4} if change == "batch size" else {}))
    listed = {"added": 25, "removed": 23, "batch size": 24}[change]
    assert result.embedded == listed
    assert sum(encoded) - done == listed - done - (16 if with_output else 0) + (
        with_output and change == "removed")
    whole = embed(folder, output=str(tmp_path / "whole.h5"))
    mine, fresh = content(result.path), content(whole.path)
    assert {name: row[1:] for name, row in mine.items()} == {name: row[1:] for name, row in fresh.items()}
    assert not list(result.path.parent.glob("*.work")) + list(result.path.parent.glob("*.salvaged"))


def test_what_moves_while_a_run_is_interrupted_is_recognised(embed, folder, encoded, tmp_path):
    """Also what the interrupted run had not come to, or had seen gone or changed."""
    embed(folder)
    old = content(tmp_path / "ws" / "embeddings.h5")
    shutil.move(folder / "green" / "003.jpg", tmp_path / "gone.jpg")
    (folder / "red" / "007.jpg").rename(tmp_path / "replaced.jpg")
    shutil.copy(tmp_path / "replaced.jpg", folder / "red" / "007.jpg")
    for number in range(12):
        (folder / "blue" / f"new{number}.jpg").write_bytes((folder / "blue" / "001.jpg").read_bytes() + b"%d" % number)
    change(folder / "red" / "007.jpg", b"changed")
    encoded.clear()
    with pytest.raises(Interrupted):
        embed(folder, stop_at(23))
    done = sum(encoded)
    assert 0 < done < 13
    for name in ("gone", "replaced"):
        (tmp_path / f"{name}.jpg").rename(folder / "green" / f"{name}.jpg")
    result = embed(folder)
    assert sum(encoded) == 13
    mine = content(result.path)
    assert mine[b"green/gone.jpg"][0] == old[b"green/003.jpg"][0]
    assert mine[b"green/replaced.jpg"][0] == old[b"red/007.jpg"][0]
    fresh = content(embed(folder, output=str(tmp_path / "whole.h5")).path)
    assert {name: row[1:] for name, row in mine.items()} == {name: row[1:] for name, row in fresh.items()}


def test_vectors_in_float16(embed, folder, tmp_path, encoded):
    whole = embed(folder, output=str(tmp_path / "whole.h5"))
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10), dtype="float16")
    with pytest.raises(UsageError, match=r"an unfinished embedding with other settings \(dtype\)"):
        embed(folder)
    half = embed(folder, dtype="float16")
    assert half.resumed_from == 15
    with EmbeddingFile(whole.path) as file, EmbeddingFile(half.path) as other:
        other.verify()
        assert (file.dtype, other.dtype) == ("float32", "float16")
        assert other.describe()["dtype"] == "float16"
        assert np.array_equal(other.embeddings(), file.embeddings().astype(np.float16).astype(np.float32))
        assert file.facts().tobytes() == other.facts().tobytes()
    with pytest.raises(MismatchError, match=r"another dtype: float16, now float32.*--fresh"):
        embed(folder)
    before, number = content(half.path), sum(encoded)
    (folder / "red" / "000.png").unlink()
    shutil.copy(folder / "red" / "001.jpg", folder / "red" / "copy.jpg")
    after = content(embed(folder, dtype="float16").path)
    assert sum(encoded) == number
    assert all(after[name] == before[name] for name in before.keys() & after.keys())


def test_a_number_too_large_for_float16_is_a_failure(embed, folder, monkeypatch):
    begin = Embedder.begin
    monkeypatch.setattr(Embedder, "begin", lambda embedder, pixels: lambda: begin(embedder, pixels)() * 1e6)
    result = embed(folder, output=str(folder.parent / "whole.h5"))
    assert not result.failed
    with pytest.raises(CollectionError, match="the first one: the vector is not finite in float16"):
        embed(folder, dtype="float16")


def test_the_output_may_be_a_link(embed, folder, tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "embeddings.h5"
    link.symlink_to(tmp_path / "disk" / "big.h5")
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10), output=str(link))
    assert (tmp_path / "disk" / "big.h5.work").exists()
    for path in (link, tmp_path / "disk" / "big.h5.work"):
        assert describe(InfoConfig(str(path)))["committed"] == 15
    assert embed(folder, output=str(link)).resumed_from == 15
    assert link.is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["big.h5"]


def test_unfinished_work_of_other_settings_is_refused(embed, folder):
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10))
    with pytest.raises(UsageError, match=r"an unfinished embedding with other settings \(features\).*--fresh"):
        embed(folder, features="projection")
    assert embed(folder, features="projection", fresh=True).resumed_from == 0


def test_a_fresh_start_that_was_interrupted_goes_on_without_fresh(embed, folder, tmp_path, make_images):
    embed(make_images(tmp_path / "other", seed=3))
    with pytest.raises(Interrupted, match="again, without --fresh, to continue"):
        embed(folder, stop_at(10), fresh=True)
    assert embed(folder).resumed_from == 15


def test_killed_between_salvaging_and_the_new_work(embed, folder, encoded, dies_in, tmp_path):
    """The second time what was salvaged first, on which the work built, has been replaced."""
    for number in range(2):
        with pytest.raises(Interrupted):
            embed(folder, stop_at(5 + 10 * number))
        shutil.copy(folder / "red" / "001.jpg", folder / "red" / f"new{number}.jpg")
        change(folder / "red" / f"new{number}.jpg", b"%d" % number)
    with dies_in("mocoembed.embed.prepare.WorkFile.begin"):
        embed(folder)
    result = embed(folder)
    assert (result.embedded, sum(encoded)) == (26, 26)
    assert content(result.path).keys() == content(embed(folder, output=str(tmp_path / "whole.h5")).path).keys()


def test_the_old_output_may_be_deleted_to_make_room(embed, folder, encoded, dies_in, tmp_path):
    """After a disk was too full to publish; what the run had done itself is not lost."""
    first = embed(folder)
    for path in sorted((folder / "red").iterdir()):
        change(path)
    with dies_in("mocoembed.embed.extract.publish"):
        embed(folder)
    first.path.unlink()
    encoded.clear()
    assert embed(folder).embedded == 24
    assert sum(encoded) == 16


def test_a_fresh_start_stays_one_when_the_collection_changes(embed, folder, encoded, dies_in):
    embed(folder)
    with dies_in("mocoembed.embed.extract.Share.fill"):
        embed(folder, fresh=True)
    shutil.copy(folder / "red" / "001.jpg", folder / "red" / "copy.jpg")
    encoded.clear()
    assert embed(folder).embedded == 25
    assert sum(encoded) == 24


def test_a_fresh_start_that_is_interrupted_again_and_again(embed, folder, tmp_path, make_images, encoded):
    """What stands at the output is another collection's all the time, and replaced at the end as was asked."""
    embed(make_images(tmp_path / "other", seed=3))
    encoded.clear()
    for number, options in enumerate(({"fresh": True}, {}, {})):
        with pytest.raises(Interrupted):
            embed(folder, stop_at(1), **options)
        shutil.copy(folder / "red" / "001.jpg", folder / "red" / f"zz{number}.jpg")
        change(folder / "red" / f"zz{number}.jpg", b"%d" % number)
    assert embed(folder).embedded == 27
    assert sum(encoded) == 27


@pytest.mark.parametrize("salvaged", [False, True])
def test_killed_between_publishing_and_cleaning_up(embed, folder, encoded, dies_in, salvaged):
    """The output is new, the finished work is still there: the next run notices and only cleans up."""
    first = embed(folder)
    if salvaged:
        change(folder / "green" / "001.jpg")
        with pytest.raises(Interrupted):
            embed(folder, stop_at(1))
    (folder / "red" / "000.png").unlink()
    change(folder / "red" / "001.jpg")
    with dies_in("mocoembed.embed.extract.remove_unfinished"):
        embed(folder)
    assert first.path.with_name("embeddings.h5.salvaged").exists() == salvaged
    published, number = first.path.read_bytes(), sum(encoded)
    again = embed(folder)
    assert sum(encoded) == number
    assert again.counts.unchanged == 23
    assert again.path.read_bytes() == published
    assert not list(first.path.parent.glob("*.work"))


def test_a_moved_collection_goes_on_with_root(embed, folder, tmp_path, encoded):
    first = embed(folder)
    before, number = content(first.path), sum(encoded)
    moved = pathlib.Path(shutil.move(folder, tmp_path / "elsewhere"))
    with pytest.raises(MismatchError, match=r"another collection.*--root"):
        embed(moved)
    again = embed(moved, root=str(moved))
    assert (again.counts.unchanged, sum(encoded)) == (24, number)
    assert content(again.path) == before
    with EmbeddingFile(again.path) as file:
        assert os.fsdecode(file.root) == str(moved)
    assert embed(moved).counts.unchanged == 24


def test_root_does_not_let_another_collection_in(embed, folder, tmp_path, make_images):
    before = embed(folder).path.read_bytes()
    other = make_images(tmp_path / "other", seed=9)
    for path in other.rglob("*.*"):
        path.rename(path.with_name(f"x{path.name}"))
    with pytest.raises(MismatchError, match=r"another collection.*Only 0 of its 24 images are there"):
        embed(other, root=str(other))
    assert (tmp_path / "ws" / "embeddings.h5").read_bytes() == before


def test_a_list_that_names_other_files_on_resuming(embed, tmp_path, make_images):
    """The same relative paths below another folder are other images."""
    for name, seed in (("a", 1), ("b", 2)):
        make_images(tmp_path / name, seed=seed)
    lines = sorted(str(path) for path in (tmp_path / "a").rglob("*.*"))
    (tmp_path / "l" ).mkdir()
    listed = tmp_path / "l" / "list.txt"
    listed.write_text("\n".join(lines))
    with pytest.raises(Interrupted):
        embed(listed, stop_at(10))
    listed.write_text("\n".join(line.replace("/a/", "/b/") for line in lines))
    mine = content(embed(listed).path)
    fresh = content(embed(listed, output=str(tmp_path / "fresh.h5")).path)
    assert {name: row[1:] for name, row in mine.items()} == {name: row[1:] for name, row in fresh.items()}
    for name, row in fresh.items():
        np.testing.assert_allclose(*(np.frombuffer(one[0], np.float32) for one in (row, mine[name])), atol=1e-6)


def test_an_image_that_changes_after_an_interruption_is_read_again(embed, folder, tmp_path):
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10))
    shutil.copy(folder / "red" / "001.jpg", folder / "blue" / "001.jpg")
    mine = content(embed(folder).path)
    assert mine[b"blue/001.jpg"][0] == mine[b"red/001.jpg"][0]


def test_damaged_embeddings_are_not_built_on(embed, folder):
    first = embed(folder)
    data = bytearray(first.path.read_bytes())
    with EmbeddingFile(first.path) as file:
        data[data.find(np.asarray(file.embeddings()).tobytes()) + 5] ^= 1
    first.path.write_bytes(data)
    (folder / "red" / "000.png").unlink()
    with pytest.raises(FormatError, match=r"damaged: its rows.*--fresh"):
        embed(folder)
    assert embed(folder, fresh=True).embedded == 23


@pytest.mark.parametrize("damage", ["seal", "begin of HDF5", "empty", "cut off"])
def test_fresh_replaces_what_is_damaged(embed, folder, damage):
    whole = embed(folder)
    data = bytearray(whole.path.read_bytes())
    if damage in ("seal", "begin of HDF5"):
        data[30 if damage == "seal" else 520] ^= 1
    whole.path.write_bytes(data[:{"empty": 0, "cut off": 1000}.get(damage, len(data))])
    with pytest.raises(FormatError, match=r"embed COLLECTION|--fresh|embed FOLDER"):
        embed(folder)
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10), fresh=True)
    again = embed(folder)
    assert (again.embedded, again.resumed_from) == (24, 15)
    assert embed(folder).counts.unchanged == 24


def test_fresh_does_not_replace_a_file_of_others(embed, folder, tmp_path):
    (tmp_path / "mine.txt").write_text("my thesis")
    with pytest.raises(FormatError, match="is not an embeddings file"):
        embed(folder, output=str(tmp_path / "mine.txt"), fresh=True)
    os.mkfifo(tmp_path / "pipe")
    for output in (tmp_path, tmp_path / "mine.txt" / "e.h5", tmp_path / "pipe"):
        with pytest.raises(UsageError, match=r"--output .* is (a folder|a file|not a regular file)"):
            embed(folder, output=str(output), fresh=True)
    assert (tmp_path / "mine.txt").read_text() == "my thesis"


@pytest.mark.parametrize("damage", ["a record", "a counter", "many"])
def test_damaged_work_costs_its_batch_and_what_follows(embed, folder, encoded, monkeypatch, tmp_path, damage):
    monkeypatch.setattr("mocoembed.embed.work.PARTS", 2)  # of 15 and 9 slots
    whole = embed(folder, output=str(tmp_path / "whole.h5")).path.read_bytes()
    with pytest.raises(Interrupted):
        embed(folder, stop_at(15))
    path = tmp_path / "ws" / "embeddings.h5.work"
    with WorkFile(path) as work:
        places = {"a record": [work._place(7) + 300], "a counter": [work._first + 3],
                  "many": [work._place(14) + 400, work._place(17) + 2]}[damage]
    flip(path, *places)
    encoded.clear()
    notes = []
    result = embed(folder, note=notes.append)
    lost = {"a record": 10, "a counter": 15, "many": 10}[damage]
    assert f"is damaged; {lost} of its images are embedded again" in notes[0]
    assert sum(encoded) == 4 + lost
    assert result.path.read_bytes() == whole


def test_images_that_are_away_for_a_while_lose_nothing(embed, folder, tmp_path, encoded):
    """A disk that is not mounted after an interruption: all that is listed fails."""
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(sorted(map(str, folder.rglob("*.*")))))
    with pytest.raises(Interrupted):
        embed(listed, stop_at(10))
    folder.rename(tmp_path / "away")
    with pytest.raises(CollectionError, match="None of the 24 images can be read"):
        embed(listed)
    (tmp_path / "away").rename(folder)
    encoded.clear()
    assert embed(listed).embedded == 24
    assert sum(encoded) == 9


def test_whatever_is_at_the_output_by_then_is_not_replaced(embed, folder, tmp_path, dies_in, make_images):
    """Salvaged embeddings with and without work beside them do not excuse it."""
    other = embed(make_images(tmp_path / "other", seed=3), output=str(tmp_path / "other.h5")).path.read_bytes()
    output = tmp_path / "ws" / "embeddings.h5"
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10))
    change(folder / "red" / "001.jpg")
    with dies_in("mocoembed.embed.prepare.WorkFile.begin"):
        embed(folder)
    for content_then, error in ((other, UsageError), (b"my thesis", UsageError), (b"", UsageError)):
        output.write_bytes(content_then)
        with pytest.raises(error, match="has been replaced since"):
            embed(folder)
        assert output.read_bytes() == content_then
    output.with_name("embeddings.h5.work").unlink()
    for content_then in (other, b"my thesis"):
        output.write_bytes(content_then)
        with pytest.raises((MismatchError, FormatError)):
            embed(folder)
        assert output.read_bytes() == content_then
    output.unlink()
    assert embed(folder).counts.unchanged == 15


def test_embeddings_that_are_swapped_while_others_build_on_them(embed, folder, tmp_path, make_images):
    other = embed(make_images(tmp_path / "other", seed=3), output=str(tmp_path / "other.h5")).path
    first = embed(folder)
    kept = first.path.read_bytes()
    change(folder / "red" / "001.jpg")
    with pytest.raises(MismatchError, match=r"has been replaced while new embeddings were to build on it"):
        embed(folder, lambda done, total: shutil.copy(other, first.path))
    assert first.path.read_bytes() == other.read_bytes()
    first.path.write_bytes(kept)
    assert embed(folder).resumed_from == 24
    with pytest.raises(MismatchError, match=r"has been replaced while the images were embedded"):
        embed(folder, lambda done, total: shutil.copy(other, tmp_path / "new.h5"), output=str(tmp_path / "new.h5"))
    assert (tmp_path / "new.h5").read_bytes() == other.read_bytes()


def test_damaged_salvaged_embeddings_do_not_take_the_work_with_them(embed, folder, tmp_path, encoded):
    with pytest.raises(Interrupted):
        embed(folder, stop_at(5))
    change(folder / "red" / "007.jpg")
    with pytest.raises(Interrupted):
        embed(folder, stop_at(15))
    flip(tmp_path / "ws" / "embeddings.h5.salvaged", 40)
    done = sum(encoded)
    assert done == 20
    assert embed(folder).embedded == 24
    assert sum(encoded) == done + 14  # the ten that were salvaged, and the rest


def test_finished_work_stays_beside_a_file_that_it_did_not_become(embed, folder, dies_in, encoded):
    first = embed(folder)
    backup = first.path.read_bytes()
    for name in ("001", "003"):
        change(folder / "red" / f"{name}.jpg")
    embed(folder)
    newer = first.path.read_bytes()
    change(folder / "red" / "001.jpg")
    with dies_in("mocoembed.embed.extract.publish"):
        embed(folder)
    first.path.write_bytes(backup)
    with pytest.raises(UsageError, match="has been replaced since"):
        embed(folder)
    first.path.write_bytes(newer)
    encoded.clear()
    assert embed(folder).embedded == 24
    assert not encoded


def test_a_part_of_the_work_that_cannot_be_read_is_done_again(embed, folder, monkeypatch, tmp_path):
    with pytest.raises(Interrupted):
        embed(folder, stop_at(15))
    real, asked = os.preadv, []

    def broken(descriptor, buffers, offset):
        if "embeddings.h5.work" in os.readlink(f"/proc/self/fd/{descriptor}") and len(buffers[0]) > 2000 and not asked:
            asked.append(offset)
            raise OSError(5, "Input/output error")
        return real(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", broken)
    notes = []
    assert embed(folder, note=notes.append).embedded == 24
    assert asked
    assert "of its images are embedded again" in notes[0]


def test_a_copy_whose_original_is_lost_fails_and_is_tried_again(embed, folder, monkeypatch, tmp_path, dies_in):
    monkeypatch.setattr("mocoembed.embed.work.PARTS", 2)
    first, copy = folder / "blue" / "001.jpg", folder / "red" / "007.jpg"
    shutil.copy(first, copy)
    with dies_in("mocoembed.embed.extract.publish"):
        embed(folder)
    path = tmp_path / "ws" / "embeddings.h5.work"
    with WorkFile(path) as work:
        place = work._place(1) + 300
    flip(path, place)
    real = Listing.read

    def gone(listing, row):
        if listing.paths[row] == b"blue/001.jpg":
            raise OSError(5, "Input/output error")
        return real(listing, row)

    with monkeypatch.context() as patched:
        patched.setattr(Listing, "read", gone)
        assert [one.path for one in embed(folder).failed] == [b"blue/001.jpg", b"red/007.jpg"]
    assert embed(folder).embedded == 24


def test_a_failed_image_that_is_gone_is_not_listed_any_more(embed, folder):
    (folder / "red" / "bad.jpg").write_text("no image")
    assert embed(folder).listed == 25
    (folder / "red" / "bad.jpg").unlink()
    with EmbeddingFile(embed(folder).path) as file:
        assert file.describe()["listed"] == 24
        assert not file.failed()


def test_after_an_error_of_a_fresh_start_it_is_said_how_to_go_on(embed, folder, monkeypatch):
    notes = []
    with monkeypatch.context() as patched:
        patched.setattr("mocoembed.embed.publish.write_embeddings", full)
        with pytest.raises(MocoembedError, match="No space left"):
            embed(folder, fresh=True, note=notes.append)
    assert notes == ["what was saved is kept by the same command without --fresh"]
    assert embed(folder).resumed_from == 24


def full(path, *arguments):
    raise write_error(path, OSError(28, "No space left on device"))


def test_copies_of_an_image_whose_vector_is_not_finite_fail_with_it(embed, folder, monkeypatch):
    shutil.copy(folder / "red" / "001.jpg", folder / "red" / "copy.jpg")
    begin = Embedder.begin
    calls = []

    def broken(embedder, pixels):
        vectors = begin(embedder, pixels)()
        calls.append(len(vectors))
        if sum(calls) > 17 >= sum(calls[:-1]):
            vectors = vectors.clone()
            vectors[17 - sum(calls[:-1])] = float("nan")
        return lambda: vectors

    monkeypatch.setattr(Embedder, "begin", broken)
    result = embed(folder)
    assert [(one.path, one.error) for one in result.failed] == [
        (b"red/001.jpg", "FloatingPointError"), (b"red/copy.jpg", "FloatingPointError")]


def test_an_output_that_appeared_meanwhile_is_not_replaced(embed, folder, tmp_path, make_images):
    with pytest.raises(Interrupted):
        embed(folder, stop_at(10))
    other = embed(make_images(tmp_path / "other", seed=3), output=str(tmp_path / "other.h5"))
    output = tmp_path / "ws" / "embeddings.h5"
    shutil.copy(other.path, output)
    with pytest.raises(UsageError, match=r"has been replaced since .*\.work was started.*--fresh"):
        embed(folder)
    assert output.read_bytes() == other.path.read_bytes()


def test_what_cannot_be_seen_is_not_dropped(embed, folder, monkeypatch):
    before = embed(folder).path.read_bytes()
    real = os.scandir

    def closed(path):
        if os.fsencode(path).endswith(b"green"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(CollectionError, match=r"'green' cannot be opened, and 8 images .* would be dropped"):
        embed(folder)
    assert (Workspace(folder.parent / "ws").embeddings).read_bytes() == before


def test_what_fails_again_leaves_the_file_alone(embed, folder):
    (folder / "red" / "001.jpg").write_bytes(b"no image")
    first = embed(folder)
    state = first.path.stat()
    assert len(embed(folder).failed) == 1
    assert first.path.stat().st_ino == state.st_ino


def test_rows_by_path_equals_a_dictionary(embed, folder):
    first = embed(folder)
    for name in ("red/000.png", "blue/007.jpg", "green/003.jpg"):
        (folder / name).unlink()
    for name in ("blue/0.png", "zz/last.png", "green/003x.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "red" / "001.jpg", folder / name)
    listing = scan(folder)
    with EmbeddingFile(first.path) as file:
        known = {path: row for row, path in enumerate(file.paths())}
        rows = rows_by_path(listing, file)
        assert rows.tolist() == [known.get(path, -1) for path in listing.paths]
        plan = Plan.of(listing, file, listing.states())
        assert [listing.paths[row] for row in plan.todo] == [b"blue/0.png", b"green/003x.jpg", b"zz/last.png"]
