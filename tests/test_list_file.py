"""Tables as other programs write them: names of columns, what is between them, blanks, Windows."""

import csv
import os

import pytest
from test_collections import labels, paths, put

from mocoembed.data.images import scan
from mocoembed.data.list_file import LABELS, PATHS
from mocoembed.errors import FormatError


def table(folder, text, name="list.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder / name


@pytest.mark.parametrize("name", PATHS)
def test_columns_that_other_programs_call_differently(tmp_path, name):
    for at, label in enumerate(LABELS):
        header = f"id,{label.title()},{name.upper()}"
        listing = scan(table(tmp_path, f"{header}\n0,cat,a.jpg\n1,,b.jpg\n", f"{at}.csv"))
        assert (paths(listing), labels(listing)) == ([b"a.jpg", b"b.jpg"], ["cat", None])
        listing = scan(table(tmp_path, f'{{"{label}": "cat", "{name}": "a.jpg"}}\n{{"{name}": "b.jpg"}}\n',
                             f"{at}.jsonl"), "first")
        assert (paths(listing), labels(listing)) == ([b"a.jpg", b"b.jpg"], ["cat", None])
    assert labels(scan(table(tmp_path, f"{name}\nx/a.jpg\n"))) == ["x"]


def test_of_several_such_columns_the_first_of_the_names_counts(tmp_path):
    for header, row in (("image,class,path,label", "no,no,a.jpg,cat"), ("label,file_name,target,filename",
                                                                         "cat,no,no,a.jpg")):
        listing = scan(table(tmp_path, f"{header}\n{row}\n"))
        assert (paths(listing), labels(listing)) == ([b"a.jpg"], ["cat"])


@pytest.mark.parametrize("text", [
    b"path\tlabel\r\na.jpg\tcat, black\r\nb.jpg\t\r\n", b'\xef\xbb\xbfpath;label\na.jpg;"cat, black"\n"b.jpg";\n',
    b'label,path\n"cat, black",a.jpg\n,b.jpg\n', b'path, label\na.jpg, "cat, black"\nb.jpg,\n',
    b' path , label \n a.jpg , "cat, black"\n b.jpg ,\n  ,  \n\n', b'a.jpg, "cat, black"\nb.jpg, \n',
    b'\r\n\r\nfile ;class\na.jpg ;cat, black\nb.jpg;\n'])
def test_what_is_between_the_columns(tmp_path, text):
    listing = scan(table(tmp_path, text))
    assert (paths(listing), labels(listing)) == ([b"a.jpg", b"b.jpg"], ["cat, black", None])


def test_tables_that_end_in_tsv(tmp_path):
    for text in ("path\tlabel\na, b.jpg\tcat\n", "a, b.jpg\tcat\n", "a, b.jpg\t cat \n"):
        listing = scan(table(tmp_path, text, "list.tsv"))
        assert (paths(listing), labels(listing)) == ([b"a, b.jpg"], ["cat"])


def test_blanks_belong_to_no_label_and_to_names_only_where_the_first_line_has_none(tmp_path):
    listing = scan(table(tmp_path, "path,label\n x .jpg, tulips\n y.jpg,tulips \n"))
    assert (paths(listing), labels(listing)) == ([b" x .jpg", b" y.jpg"], ["tulips"] * 2)
    with open(tmp_path / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path"], [" x.jpg "], ['"; y.jpg']])  # as `mocoembed convert` writes
    assert paths(scan(tmp_path / "list.csv")) == [b" x.jpg ", b'"; y.jpg']


def test_a_table_whose_images_are_there(tmp_path, images, fresh_workspace, run_cli):
    """The kNN accuracy of labels with a blank after the comma was 0 %."""
    names = sorted(path.relative_to(images) for path in images.rglob("*.*"))
    for name, between in (("bank", ","), ("queries", ", ")):
        part = names[:] if name == "bank" else names[::3]
        table(tmp_path, f"path{between}label\n" + "".join(f"{path}{between}{path.parent}\n" for path in part),
              f"{name}.csv")
        assert run_cli("embed", tmp_path / f"{name}.csv", "--root", images, "--workspace", fresh_workspace, "--workers",
                       0, "--output", tmp_path / f"{name}.h5")[0] == 0
    _, out, err = run_cli("knn", tmp_path / "bank.h5", tmp_path / "queries.h5", "-k", 1)
    assert "1  0.1  100.00" in out, err


@pytest.mark.parametrize("name", ["list.txt", "list.csv", "list.jsonl"])
def test_backslashes_of_windows_get_a_hint(tmp_path, name):
    put(tmp_path, "src/000.jpg", "moved/src/000.jpg")
    windows = r"src\000.jpg"
    text = {"list.txt": f"{windows}\n", "list.csv": f'\ufeffpath,label\n"{windows}","roses, red"\nother.jpg,\n',
            "list.jsonl": '{"path": "src\\\\000.jpg"}\n'}[name]
    with pytest.raises(FormatError, match=r"names 'src\\\\000.jpg', which does not exist, but 'src/000.jpg' does."):
        scan(table(tmp_path, text, name))
    with pytest.raises(FormatError, match=r"'src/000\.jpg' does"):
        scan(table(tmp_path, text, name), root=tmp_path / "moved")
    put(tmp_path, windows)
    assert windows.encode() in paths(scan(tmp_path / name))


def test_a_drive_of_windows_and_names_that_only_look_like_it(tmp_path):
    for text in ("C:\\photos\\1.jpg\nb.jpg\n", "b.jpg\nphotos\\2.jpg\nd:\\photos\\1.jpg\n"):
        with pytest.raises(FormatError, match=r"a Windows path, which does not exist here. Write paths"):
            scan(table(tmp_path, text, "list.txt"))
    assert len(scan(table(tmp_path, "a\\1.jpg\nb.jpg\n", "list.txt"))) == 2  # missing with slashes, too: each fails
    os.mkdir(tmp_path / "a")
    put(tmp_path, "a\\1.jpg", "a/1.jpg")
    assert len(scan(tmp_path / "list.txt")) == 2
