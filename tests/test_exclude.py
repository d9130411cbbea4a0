"""What `--exclude` and the usual names leave out, of folders, lists and shards, against a slow reading of the rule."""

import dataclasses
import fnmatch
import json
import os
import time

import pytest
from test_collections import equal, keeping, no_scan, paths, put, write_tar  # noqa: F401 (fixtures)

from mocoembed.checks import to_dict
from mocoembed.config import EmbedConfig, PretrainConfig
from mocoembed.data.exclude import USUAL, Exclude, excluded_text
from mocoembed.data.images import scan
from mocoembed.errors import CollectionError, UsageError
from mocoembed.files import sha256_json
from mocoembed.train.run import EXECUTION, require_same_settings, run_folder

FILES = ("a/1.jpg", "a/1.png", "a/thumbs/2.jpg", "b/thumbs/c/3.jpg", "b/x/thumbs.jpg", "b/x/4.jpg", "thumbs/5.png",
         "Thumbs/6.jpg", "b/ä.jpg", "top.jpg")
GLOBS = [("thumbs",), ("*.png",), ("thumbs", "*.png"), ("b/x",), ("b/x/",), ("./b/x",), ("b/*",), ("*/thumbs",),
         ("b/*.jpg",), ("?.jpg",), ("[ab]",), ("[!abptx]*",), ("x/4.jpg",), ("nothing", "top.jpg"), ("a/1.*", "?humbs")]


def slowly(files, globs):
    """The files that stay: no part of the path, nor the path up to any part, matches."""
    def out(path, glob):
        parts, bare = path.split("/"), glob.rstrip("/").removeprefix("./")
        return any(fnmatch.fnmatchcase("/".join(parts[:n + 1]) if "/" in bare else parts[n], bare)
                   for n in range(len(parts)))
    return sorted((path for path in files if not any(out(path, glob) for glob in globs)), key=str.encode)


@pytest.mark.parametrize("globs", GLOBS, ids=str)
def test_folders_lists_and_shards_leave_out_the_same(tmp_path, globs):
    put(tmp_path / "p", *FILES)
    expected = slowly(FILES, globs)
    assert 0 < len(expected) < len(FILES) or globs == ("x/4.jpg",)
    (tmp_path / "p" / "list.txt").write_text("".join(f"{path}\n" for path in FILES))
    write_tar(tmp_path / "p.tar", [(path, b"") for path in FILES])
    folder, lines = scan(tmp_path / "p", exclude=globs), scan(tmp_path / "p" / "list.txt", exclude=globs)
    assert [path.decode() for path in folder.paths] == [path.decode() for path in lines.paths] == expected
    assert folder.excluded == lines.excluded
    assert (sum(folder.excluded.values()) > 0) is (len(expected) < len(FILES))
    if not any("/" in glob for glob in globs):  # their paths begin with the shard's name
        shard = scan(tmp_path / "p.tar", exclude=globs)
        assert [path.decode()[6:] for path in shard.paths] == expected
        assert shard.excluded == folder.excluded


def test_a_folder_counts_once_and_a_glob_that_matches_nothing_is_shown(tmp_path):
    put(tmp_path / "p", *FILES, *(f"a/thumbs/{i}.jpg" for i in range(100)))
    notes = []
    listing = scan(tmp_path / "p", exclude=("thumbs", "*.png", "*.gif"), note=notes.append)
    assert listing.excluded == {"thumbs": 3, "*.png": 1, "*.gif": 0}
    assert notes == ["excluded: 'thumbs' (3), '*.png' (1), '*.gif' (0); a folder counts once"]
    assert excluded_text(listing.excluded) == notes[0]
    assert paths(scan(tmp_path / "p", exclude="thumbs")) == paths(scan(tmp_path / "p", exclude=("thumbs",)))
    with pytest.raises(CollectionError, match=r"holds no images \(excluded: '\*' \(5\); a folder"):
        scan(tmp_path / "p", exclude=("*",))


def test_the_usual_folders_are_left_out_unless_they_are_named(tmp_path):
    for name in USUAL.values():
        put(tmp_path / "p", f"{name}/1.jpg", f"a/{name}/b/2.jpg", f"a/{name}.jpg")
    put(tmp_path / "p", "a/@EADIR/3.jpg", "$Recycle.Bin/4.jpg")
    notes = []
    listing = scan(tmp_path / "p", note=notes.append)
    assert paths(listing) == sorted(f"a/{name}.jpg".encode() for name in USUAL.values())
    assert listing.excluded == dict.fromkeys(USUAL.values(), 2) | {"@eaDir": 3, "$RECYCLE.BIN": 3}
    assert "'@eaDir' (3)" in notes[0]
    members = ["@eaDir/1.jpg", "a/@eaDir/2.jpg", "a/@eaDir/3.jpg", "4.jpg"]
    write_tar(tmp_path / "p.tar", [(name, b"") for name in members])
    assert (paths(scan(tmp_path / "p.tar")), scan(tmp_path / "p.tar").excluded) == ([b"p.tar/4.jpg"], {"@eaDir": 2})
    assert len(scan(tmp_path / "p" / "@eaDir")) == 1
    (tmp_path / "list.txt").write_text("p/@eaDir/1.jpg\n")
    assert paths(scan(tmp_path / "list.txt")) == [b"p/@eaDir/1.jpg"]


def test_what_several_collections_leave_out_is_added_up(tmp_path):
    put(tmp_path, "p/@eaDir/1.jpg", "p/2.jpg", "q/3.jpg", "q/4.png", "q/@eaDir/5.jpg")
    listing = scan([tmp_path / "p", tmp_path / "q", tmp_path / "q" / "4.png"], exclude=("*.png",))
    assert (paths(listing), listing.excluded) == ([b"p/2.jpg", b"q/3.jpg"], {"@eaDir": 2, "*.png": 2})


def test_folders_that_are_excluded_are_not_read(tmp_path, monkeypatch):
    put(tmp_path, "p/@eaDir/1.jpg", "p/raw/2.jpg", "p/3.jpg")
    (tmp_path / "p" / "raw").chmod(0)
    real, seen = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: seen.append(os.path.basename(path.rstrip(b"/"))) or real(path))
    assert paths(scan(tmp_path / "p", exclude=("raw",))) == [b"3.jpg"]
    assert seen == [b"p"]


def test_a_kept_listing_is_that_of_the_same_exclusions(keeping, no_scan, tmp_path):  # noqa: F811
    put(tmp_path / "p", *FILES, "@eaDir/1.jpg")
    time.sleep(0.02)
    listings = {globs: scan(tmp_path / "p", exclude=globs) for globs in ((), ("thumbs",), ("*.png",))}
    assert len({listing.digest() for listing in listings.values()}) == len(list(keeping.iterdir())) == 3
    no_scan()
    for globs, listing in listings.items():
        again = scan(tmp_path / "p", exclude=globs)
        assert equal(again, listing)
        assert again.excluded == listing.excluded != {}


@pytest.mark.parametrize("glob", ["", "/photos/raw", "../raw", "a/../b"])
def test_globs_that_could_match_nothing_are_refused(glob):
    for config in (lambda: EmbedConfig("x", exclude=(glob,)), lambda: PretrainConfig("x", exclude=("a", glob))):
        with pytest.raises(UsageError, match=r"--exclude '.*': must be a name or a path relative to the collection"):
            config()


def test_images_that_are_excluded_later_are_dropped(tmp_path, make_images, fresh_workspace, run_cli):
    folder = make_images(tmp_path / "p")
    (folder / "red").rename(folder / "@eaDir")
    embed = ("embed", folder, "--workspace", fresh_workspace, "--output", tmp_path / "a.h5", "--workers", 0, "--json")
    status, out, err = run_cli(*embed)
    assert (status, json.loads(out)["embedded"], json.loads(out)["excluded"]) == (0, 16, {"@eaDir": 1})
    assert "excluded: '@eaDir' (1); a folder counts once" in err
    status, out, _ = run_cli(*embed, "--exclude", "blue", "--exclude", "*.png")
    result = json.loads(out)
    assert (status, result["embedded"], result["unchanged"], result["new"], result["dropped"]) == (0, 4, 4, 0, 12)
    assert result["excluded"] == {"@eaDir": 1, "blue": 1, "*.png": 4}
    assert run_cli(*embed, "--exclude", "/blue")[0] == 2


def test_pretraining_leaves_out_the_same(tmp_path, make_images, run_cli):
    folder = make_images(tmp_path / "p")
    small = ("pretrain", folder, "--workspace", tmp_path / "ws", "--recipe", "small", "--epochs", 1, "--arch",
             "resnet18", "--width", 0.125, "--image-size", 32, "--batch-size", 8, "--bn-groups", 2, "--workers", 0,
             "--queue-size", 16, "--device", "cpu")
    status, _, err = run_cli(*small, "--exclude", "blue", "--val", folder, "--val-every", 1)
    assert status == 0
    assert err.count("excluded: 'blue' (1); a folder counts once") == 2  # also in the collection of --val
    assert "16 images" in err
    status, _, err = run_cli(*small)  # other images: a run of its own
    assert (status, "24 images" in err, len(list((tmp_path / "ws" / "runs").iterdir()))) == (0, True, 2)


def test_folders_are_asked_for_once(monkeypatch):
    exclude, asked = Exclude(("x",)), []
    real = Exclude._passes
    monkeypatch.setattr(Exclude, "_passes", lambda self, path: asked.append(path) or real(self, path))
    assert [exclude.takes(path) for path in (b"a/b/1", b"a/b/2", b"a/x/3", b"a/x/y/4", b"5")] == [
        True, True, False, False, True]
    assert asked == [b"a", b"a/b", b"a/b/1", b"a/b/2", b"a/x", b"5"]


def test_runs_of_versions_without_exclusions_keep_their_names_and_go_on(tmp_path):
    config = PretrainConfig.of("small", "photos", workspace=str(tmp_path))
    later = ("exclude", "init", "value_range", "key_image_size", "key_crop_scale")
    old = {name: value for name, value in to_dict(config).items() if name not in later}
    learned = {name: value for name, value in old.items() if name not in EXECUTION}
    name = f"small-{sha256_json({**learned, 'images': os.path.abspath('photos')})[:8]}"
    assert run_folder(config).name == name
    assert run_folder(dataclasses.replace(config, exclude=("a",))).name != name
    require_same_settings({"epoch": 1, "config": old}, config, tmp_path)
    with pytest.raises(UsageError, match="--seed 0 -> 1"):
        require_same_settings({"epoch": 1, "config": old}, dataclasses.replace(config, seed=1), tmp_path)
