"""Reading embeddings files lazily: indexed as NumPy indexes, in other processes too, and as the documentation shows."""

import errno
import multiprocessing
import os
import pathlib
import pickle
import re
import shutil

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

import mocoembed
from mocoembed.embed.store import EmbeddingFile
from mocoembed.errors import FormatError, MismatchError
from mocoembed.search.exact import ExactRows

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture
def made(make_embeddings):
    """(path, vectors) of 40 rows of 6 numbers; the labels are a, b and unknown."""
    vectors = np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)
    path = make_embeddings("e", vectors, "ab?b" * 10)
    with EmbeddingFile(path) as file:
        return path, file.embeddings()


@pytest.mark.parametrize("rows", [3, -1, np.int64(5), slice(None), slice(10, 20), slice(-5, None), slice(30, 2, -3),
                                  slice(None, None, -1), slice(5, 5), slice(9, 3), slice(3, 9, -1), slice(1, 30, 4),
                                  [7, 3, 3, 39], [], [-1, 0], np.arange(40) % 3 == 0, np.zeros(40, bool),
                                  np.array([0, 39]), range(3, 5), (slice(2, 9), slice(0, 3)), (4, 2), (4, slice(1, 3)),
                                  ([5, 1], 0), (-1, -1), ..., (..., 0), (2, ...), ()], ids=str)
def test_rows_are_those_that_numpy_gives(made, rows):
    path, vectors = made
    rows = list(rows) if isinstance(rows, range) else rows
    wanted = np.asarray(rows, np.intp) if isinstance(rows, list) else rows
    with EmbeddingFile.open(path) as file:
        found = file.embeddings[rows]
        assert found.dtype == np.float32
        assert np.array_equal(found, vectors[wanted])
        if not isinstance(rows, tuple):
            names = file.paths()
            assert np.array_equal(np.array(file.paths[rows]), np.array(names)[wanted])
            assert np.array_equal(file.labels[rows], file.labels()[wanted])


def test_columns_know_their_size_and_become_arrays(made):
    path, vectors = made
    with EmbeddingFile.open(path) as file:
        assert file.embeddings.shape == (40, 6)
        assert len(file.paths) == len(file) == 40
        assert np.array_equal(np.asarray(file.embeddings), vectors)
        assert np.asarray(file.embeddings, np.float64).dtype == np.float64
        assert [int(label) for label in file.labels] == file.labels().tolist()
        assert isinstance(file.paths[0], bytes)
        assert file.digest[0] == bytes(32)
        for wrong in (40, -41):
            with pytest.raises(IndexError):
                file.embeddings[wrong]
        with pytest.raises(IndexError):
            file.embeddings[[3, 40]]
        with pytest.raises(TypeError):
            file.embeddings["0"]
    with pytest.raises(ValueError, match="is closed"):
        file.embeddings[0]


def test_comparing_gives_the_mask_that_numpy_gives(made):
    path, vectors = made
    with EmbeddingFile.open(path) as file:
        labels, names = file.labels(), np.array(file.paths())
        assert 0 < (labels == 1).sum() < 40
        assert np.array_equal(file.embeddings[file.labels == 1], vectors[labels == 1])
        assert np.array_equal(file.embeddings[file.labels != 1], vectors[labels != 1])
        for one, other in [
                (file.labels < 1, labels < 1), (file.labels <= 1, labels <= 1), (file.labels > 1, labels > 1),
                (file.labels >= 1, labels >= 1), (labels == file.labels, np.ones(40, bool)),
                (file.labels == file.labels, np.ones(40, bool)), (file.embeddings > 0, vectors > 0),
                (file.paths == file.paths[3], names == names[3])]:
            assert isinstance(one, np.ndarray)
            assert np.array_equal(one, other)
        for wrong in (False, np.True_, (False, 0)):
            with pytest.raises(TypeError, match=r"not a row.*file\.labels\(\) == 0"):
                file.embeddings[wrong]
        with pytest.raises(TypeError, match="unhashable"):
            hash(file.labels)
        assert [(one.dtype, one.ndim) for one in (file.embeddings, file.labels, file.paths)] == [
            (np.float32, 2), (np.int32, 1), (names.dtype, 1)]


def test_what_may_not_be_mapped_is_read(made, monkeypatch):
    """Where the system refuses, HDF5 reads the same rows; -1, which stands for none, too."""
    path, vectors = made
    rows, refused = np.array([[3, -1], [39, 3]]), []

    def refuse(*_arguments, **_options):
        refused.append(1)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    with EmbeddingFile.open(path) as file:
        wanted = file.paths_at(rows[1]), file.digests_at(rows[1]), ExactRows(file, rows[0][:1]).nearest(vectors[:2], 1)
    monkeypatch.setattr(np, "memmap", refuse)
    with EmbeddingFile.open(path) as file:
        assert np.array_equal(file.vectors_at(rows), vectors[rows])
        assert np.array_equal(file.vectors_at(slice(5, 9)), vectors[5:9])
        found = file.paths_at(rows[1]), file.digests_at(rows[1]), ExactRows(file, rows[0][:1]).nearest(vectors[:2], 1)
        assert found[:2] == wanted[:2]
        assert np.array_equal(found[2], wanted[2])
    assert len(refused) == 3  # of each dataset once


def test_only_what_is_asked_for_is_read(made, monkeypatch):
    """A dataset that refuses to be read beyond what a column may read for three rows of a thousand."""
    from mocoembed.embed.column import Column

    class Watched:
        shape = (1000, 2)
        read = 0

        def __len__(self):
            return 1000

        def __getitem__(self, rows):
            part = np.zeros(self.shape)[rows]
            self.read += len(part)
            return part

    for rows, most in [(5, 1), (slice(10, 20), 10), ([1, 500, 999], 3), ([5, 9, 7], 5), (slice(None, None, -100), 10)]:
        dataset = Watched()
        Column(lambda dataset=dataset: dataset)[rows]
        assert 0 < dataset.read <= most, rows


def test_pickled_by_its_path_even_from_another_folder(made, tmp_path, monkeypatch):
    path, vectors = made
    monkeypatch.chdir(os.path.dirname(path))
    file = EmbeddingFile(os.path.basename(path))
    data = pickle.dumps(file)
    assert len(data) < 1000
    file.close()
    monkeypatch.chdir("/")
    with pickle.loads(data) as again:
        assert np.array_equal(again.embeddings[3:5], vectors[3:5])
    shutil.copy(path, tmp_path / "kept.h5")
    os.unlink(path)
    with pytest.raises(FileNotFoundError):
        len(pickle.loads(data))
    shutil.copy(tmp_path / "kept.h5", path)
    assert len(pickle.loads(data)) == 40
    pathlib.Path(path).write_text("text")
    with pytest.raises(FormatError):
        len(pickle.loads(data))


def test_a_file_that_was_replaced_is_not_mistaken_for_the_old_one(made, make_embeddings, tmp_path):
    path, vectors = made
    file = EmbeddingFile(path)
    data = pickle.dumps(file)
    os.replace(make_embeddings("other", vectors + 1, "ab?b" * 10), path)
    assert np.array_equal(file.embeddings[0], vectors[0])  # what is open stays
    with pytest.raises(MismatchError, match="has been replaced since it was opened"):
        pickle.loads(data).embeddings[0]
    file.close()


class Rows(Dataset):
    """As in docs/python.md, and with the process in which each row was read."""

    def __init__(self, path):
        self.file = EmbeddingFile.open(path)

    def __len__(self):
        return len(self.file)

    def __getitem__(self, row):
        return self.file.embeddings[row], int(self.file.labels[row]), os.getpid(), self.file._process


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_dataloader_with_two_workers(made, start):
    path, vectors = made
    rows = Rows(path)
    assert len(rows.file.embeddings[0]) == 6  # read before the workers start
    loader = DataLoader(rows, batch_size=5, num_workers=2, multiprocessing_context=multiprocessing.get_context(start))
    for _ in range(2):
        found, labels, readers, openers = (np.concatenate(part) for part in zip(*loader))
        assert np.array_equal(found, vectors)
        assert np.array_equal(labels, rows.file.labels())
        assert len(set(readers.tolist())) == 2
        assert os.getpid() not in openers.tolist()
        assert np.array_equal(readers, openers)
    assert np.array_equal(rows.file.embeddings(), vectors)  # the parent's own handle still works
    rows.file.close()


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_lines_of_the_format_page_read_a_file(made, tmp_path, monkeypatch):
    pytest.importorskip("pandas")
    path, vectors = made
    monkeypatch.chdir(shutil.copytree(os.path.dirname(path), tmp_path / "here"))
    os.rename("e.h5", "embeddings.h5")
    (lines,) = blocks("format.md")
    assert "mocoembed" not in lines
    names = {}
    exec(compile(lines, "format.md", "exec"), names)
    with EmbeddingFile("embeddings.h5") as file:
        assert np.array_equal(names["vectors"], vectors)
        assert names["table"]["path"].tolist() == [path.decode() for path in file.paths()]
        assert names["table"]["label"].fillna("?").tolist() == [
            "?" if number < 0 else file.label_names[number] for number in file.labels()]


def test_the_lines_of_the_python_page_about_files_run(made, tmp_path, monkeypatch, capsys):
    path, _ = made
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mocoembed-workspace").mkdir()
    shutil.copy(path, tmp_path / "mocoembed-workspace" / "embeddings.h5")
    (lines,) = [block for block in blocks("python.md") if "DataLoader" in block]
    monkeypatch.setattr("torch.utils.data.DataLoader.__init__", _in_this_process(DataLoader.__init__))
    names = {"__name__": "__main__", "mocoembed": mocoembed}
    exec(compile(lines, "python.md", "exec"), names)
    assert "40" in capsys.readouterr().out


def _in_this_process(real):
    """A class made by `exec` cannot be found by a spawned process; the test above has tried the workers."""
    def start(self, *arguments, num_workers, **more):
        assert num_workers > 0
        real(self, *arguments, **more)

    return start
