"""Results side by side: paired differences against loops, McNemar's test against the binomial, and what is refused."""

import json
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from torchless import WITHOUT_TORCH

from mocoembed.config import CompareConfig, KnnConfig, RetrievalConfig
from mocoembed.errors import FormatError, MismatchError, UsageError
from mocoembed.evaluate.compare import compare_results, mcnemar, measures_in, setting_of
from mocoembed.evaluate.knn.accuracy import knn_accuracy
from mocoembed.evaluate.result import text_of
from mocoembed.evaluate.retrieval.measure import measure_retrieval

CLASSES = "aabbbccc" * 5


def clouds(noise: float, seed: int) -> np.ndarray:
    centres = np.eye(3)[["abc".index(one) for one in CLASSES]]
    return centres + noise * np.random.default_rng(seed).standard_normal(centres.shape)


def read(path: str) -> dict:
    return json.loads(pathlib.Path(path).read_text())


def write(path: str, value: dict):
    pathlib.Path(path).write_text(json.dumps(value))


@pytest.fixture
def made(make_embeddings, tmp_path):
    """`made(name, noise, k=5)` writes a kNN result of made-up vectors of the same forty images; its path."""
    def make(name: str, noise: float, k: int = 5, names: str = CLASSES, seed: int = 0) -> str:
        path = make_embeddings(name, clouds(noise, seed)[:len(names)], names, fingerprint=name[0] * 64)
        (tmp_path / f"{name}.json").write_text(text_of(knn_accuracy(KnnConfig(path, k=(k,))).as_json()))
        return str(tmp_path / f"{name}.json")

    return make


def test_the_difference_is_that_of_the_same_queries(made):
    weak, strong = made("weak", 1.0), made("strong", 0.5, seed=1)
    result = compare_results(CompareConfig((weak, strong)))
    first, second = (np.array(read(path)["outcomes"]["top1"]) for path in (weak, strong))
    (difference,) = result.differences
    assert difference.value.value == pytest.approx(100 * (second - first).mean())
    assert difference.value.n == 40
    random = np.random.default_rng(1)
    drawn = [100 * (second - first)[random.integers(0, 40, 40)].mean() for _ in range(4000)]
    assert difference.value.ci95 == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=2.6)
    assert difference.mcnemar.only_first == ((first == 1) & (second == 0)).sum()
    assert difference.mcnemar.only_second == ((first == 0) & (second == 1)).sum()
    assert result.differs == []
    assert measures_in(result) == ["top1", "majority", "balanced", "ap"]
    assert setting_of(result.rows()[0][1]) == "k 5, T 0.1"


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (3, 8), (8, 3), (5, 5), (0, 30), (700, 800)])
def test_mcnemar_is_the_binomial_test(first, second):
    right = np.repeat([[True, False], [False, True], [True, True], [False, False]], [first, second, 4, 5], axis=0)
    found = mcnemar(right[:, 0], right[:, 1])
    total = first + second
    expected = min(1, 2 * sum(math.comb(total, i) for i in range(min(first, second) + 1)) / 2 ** total)
    assert (found.only_first, found.only_second) == (first, second)
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_other_protocols_are_refused_and_named(made):
    one, other = made("one", 0.5), made("two", 0.5, k=3)
    with pytest.raises(MismatchError, match=r"k is \[5\] in .*one.json, \[3\] in .*two.json.*--anyway"):
        compare_results(CompareConfig((one, other)))
    result = compare_results(CompareConfig((one, other), anyway=True))
    assert len(result.differs) == len(result.differences) == 1


def test_other_images_are_refused_and_the_common_ones_compared(made):
    one, fewer = made("one", 0.5), made("fewer", 0.5, names=CLASSES[:32])
    with pytest.raises(MismatchError, match=r"bank of .* are not the same images of each class"):
        compare_results(CompareConfig((one, fewer)))
    (difference,) = compare_results(CompareConfig((one, fewer), anyway=True)).differences
    assert difference.value.n == 32
    alien = read(one)
    alien["outcomes"]["queries"] = [f"{i:016x}" for i in range(40)]
    write(fewer, alien)
    with pytest.raises(MismatchError, match=r"queries of .* are not the same images"):
        compare_results(CompareConfig((one, fewer)))
    with pytest.raises(MismatchError, match="no query in common"):
        compare_results(CompareConfig((one, fewer), anyway=True))


def test_copies_of_an_image_are_paired_one_by_one(made):
    one, other = made("one", 0.8), made("two", 0.8, seed=1)
    for path in (one, other):
        value = read(path)
        value["outcomes"]["queries"][1] = value["outcomes"]["queries"][0]
        write(path, value)
    assert compare_results(CompareConfig((one, other))).differences[0].value.n == 40


def test_over_several_seeds_the_difference_is_that_of_the_means(made):
    """Outcomes that are shares of seeds give the difference of the printed numbers, and no p."""
    weak, strong = made("weak", 1.0), made("strong", 0.5, seed=1)
    for number, path in enumerate((weak, strong)):
        result, random = read(path), np.random.default_rng(number)
        share = random.integers(0, 3, 40) / 2
        result["outcomes"]["top1"] = share.tolist()
        result["results"][0]["values"]["top1"]["value"] = 100 * share.mean()
        write(path, result)
    found = compare_results(CompareConfig((weak, strong)))
    (difference,) = found.differences
    numbers = [read(path)["results"][0]["values"]["top1"]["value"] for path in (weak, strong)]
    assert difference.value.value == pytest.approx(numbers[1] - numbers[0])
    assert difference.mcnemar is None
    assert found.remarks == []


def test_a_difference_of_first_seeds_beside_a_mean_is_said(make_embeddings, tmp_path):
    """kNN with few labels: each seed has other queries, so single queries are those of the first."""
    path = make_embeddings("cloud", clouds(1.0, 0), CLASSES)
    result = knn_accuracy(KnnConfig(path, k=(3,), labels="2-per-class", seeds=5)).as_json()
    for name in ("few", "again"):
        (tmp_path / f"{name}.json").write_text(text_of(result))
    first = 100 * np.mean(result["outcomes"]["top1"])
    assert first != pytest.approx(result["results"][0]["top1"])
    found = compare_results(CompareConfig((str(tmp_path / "few.json"), str(tmp_path / "again.json"))))
    assert len(found.remarks) == 2
    assert found.remarks[0].endswith(f"({result['results'][0]['top1']:.2f}), the difference is that of its first seed "
                                     f"({first:.2f})")


def test_retrieval_results(make_embeddings, tmp_path):
    paths = []
    for name, noise in (("one", 0.5), ("two", 1.0)):
        result = measure_retrieval(RetrievalConfig(make_embeddings(name, clouds(noise, 0), CLASSES)))
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(text_of(result.as_json()))
    found = {one.measure: one for one in compare_results(CompareConfig(tuple(map(str, paths)))).differences}
    maps = [json.loads(path.read_text())["results"][0]["map"]["value"] for path in paths]
    assert found["map"].value.value == pytest.approx(maps[1] - maps[0], abs=1e-5)
    assert found["map"].mcnemar is None
    assert found["map"].value.ci95[1] < 0


def without_queries(path):
    value = json.loads(pathlib.Path(path).read_text())
    del value["outcomes"]["queries"]
    return json.dumps(value)


def test_a_result_without_single_queries_is_refused_by_name(made, tmp_path):
    good, other = made("one", 0.5), tmp_path / "rankme.json"
    other.write_text(json.dumps({**json.loads(pathlib.Path(good).read_text()), "task": "rankme", "outcomes": {}}))
    with pytest.raises(MismatchError, match="is a result of rankme, which has no value for single images"):
        compare_results(CompareConfig((good, str(other))))


def test_what_is_no_result(made, tmp_path):
    good, bad = made("one", 0.5), tmp_path / "bad.json"
    for text, said in [("{", "is not JSON"), ("[]", "not a result"), ('{"kind": "mocoembed evaluation", "schema": 2}',
                                                                      "schema 2"),
                       ('{"kind": "mocoembed evaluation", "schema": 1}', "not a whole result"),
                       ('{"kind": "mocoembed evaluation", "schema": 1, "outcomes": 3}', "not a whole result"),
                       (without_queries(good), "not a whole result")]:
        bad.write_text(text)
        with pytest.raises(FormatError, match=said):
            compare_results(CompareConfig((good, str(bad))))
    bad.write_bytes(b"\xff\x00")
    with pytest.raises(FormatError, match="is not JSON"):
        compare_results(CompareConfig((good, str(bad))))
    with pytest.raises(UsageError, match="does not exist"):
        compare_results(CompareConfig((good, str(tmp_path / "nothing.json"))))
    with pytest.raises(UsageError, match="two or more"):
        CompareConfig((good,))
    with pytest.raises(UsageError, match="given twice"):
        CompareConfig((good, good))


def test_command(made, run_cli):
    weak, strong = made("weak", 1.0), made("strong", 0.5, seed=1)
    status, out, err = run_cli("compare", weak, strong)
    assert (status, err) == (0, "")
    assert [line.split()[:2] for line in out.splitlines()[:3]] == [["result", "task"], ["weak", "knn"],
                                                                   ["strong", "knn"]]
    assert out.splitlines()[-1].split()[:2] == ["strong", "top-1"]
    value = json.loads(run_cli("compare", weak, strong, "--json")[1])
    assert (value["kind"], value["schema"]) == ("mocoembed comparison", 1)
    assert set(value["differences"][0]["mcnemar"]) == {"only_first", "only_second", "p"}
    status, out, err = run_cli("compare", weak)
    assert (status, out) == (2, "")
    assert "two or more" in err


def test_it_needs_no_torch(made):
    weak, strong = made("weak", 1.0), made("strong", 0.5, seed=1)
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "compare", weak, strong], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "to weak" in done.stdout
