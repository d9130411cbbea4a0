"""The report: what stands in it, that names stay text, what it refuses; and in Debian's chromium, if there is one."""

import base64
import hashlib
import itertools
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torchless import WITHOUT_TORCH

from mocoembed.checks import to_dict
from mocoembed.config import EmbedConfig, PretrainConfig, ReportConfig
from mocoembed.embed.extract import embed_images
from mocoembed.errors import FormatError, UsageError
from mocoembed.report import charts, html
from mocoembed.report.html import element
from mocoembed.report.make import make_report
from mocoembed.report.results import matrix, measures_of, overview, result_section
from mocoembed.report.run import charts_of, read_run, run_section
from mocoembed.search.map_file import ImageMap, write_map
from mocoembed.train.resolve import command_of

HOSTILE = "<img src=x onerror=window.hacked=1>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SIZES = ((390, 844), (1280, 900))


class Parsed(HTMLParser):
    """A page as a browser would see it: its text and its elements."""

    def __init__(self, page: str):
        super().__init__()
        self.words, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def parsed(path) -> Parsed:
    return Parsed(pathlib.Path(path).read_text(encoding="utf-8"))


def words_of(one) -> list[str]:
    return [text.strip() for text in one.itertext() if text.strip()]


def write_run(folder, steps=12, per_epoch=4, **config):
    """A run folder with made-up metrics."""
    folder.mkdir(parents=True)
    settings = PretrainConfig.of("small", config.pop("images", "photos"), **config)
    (folder / "config.json").write_text(json.dumps(
        {**to_dict(settings), "collection": {"images": 24, "listing": "ab" * 32}}))
    lines = []
    for step in range(1, steps + 1):
        lines.append({"step": step, "epoch": (step - 1) // per_epoch, "lr": 0.1 / step, "chance": 3.0,
                      "queue_filled": 1.0, "loss": 3 - 0.1 * step, "top1": step / 100, "top5": step / 50, "spread": 0.7,
                      "images_per_second": 100.0 + step, "waiting": 0.25, "waiting_mean": 0.25})
        if step % per_epoch == 0:
            lines.append({"step": step, "epoch": step // per_epoch - 1, "knn_top1": 30.0 + step, "knn_k": 20,
                          "knn_T": 0.1, "images": 24, "rankme": 5.0 + step, "rankme_n": 24, "uniformity": -1.5,
                          "alignment": None, "alignment_n": 0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return settings


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_images, make_encoder, workspace):
    """(folder of images, workspace) with a class and an image whose names a careless page would run."""
    root = tmp_path_factory.mktemp("report")
    folder = make_images(root / "images", 6)
    (folder / HOSTILE).mkdir()
    pixels = np.random.default_rng(7).integers(0, 255, (6, 6, 3), np.uint8)
    for i in range(3):
        Image.fromarray(np.roll(pixels, i)).resize((64, 40)).save(folder / HOSTILE / f"{i}{HOSTILE}.png")
    places = pathlib.Path(shutil.copytree(workspace, root / "ws"))
    embed_images(EmbedConfig(str(folder), workspace=str(places), workers=0, device="cpu", fresh=True))
    return folder, places


@pytest.fixture
def results(made, run_cli, tmp_path, monkeypatch):
    """Paths of a result of each command."""
    monkeypatch.setenv("MOCOEMBED_WORKSPACE", "a place")
    found = []
    for name, *more in (("knn", "-k", 3, "--suspects"), ("linear", "--folds", 2), ("retrieval",), ("rankme",)):
        status, out, err = run_cli(name, made[1] / "embeddings.h5", *more, "--json")
        assert status == 0, err
        (tmp_path / f"{name}.json").write_text(out)
        found.append(str(tmp_path / f"{name}.json"))
    return found


def test_each_measure_without_a_common_unit_has_its_own(results):
    value = json.loads(pathlib.Path(results[-1]).read_text())
    assert value["unit"] is None
    assert value["baselines"]
    for entry in (*value["results"], *value["baselines"]):
        assert {name: entry[name]["unit"] for name in ("rankme", "uniformity")} == {"rankme": "directions",
                                                                                    "uniformity": "log"}


# ------------------------------------------------------------------------------------------------ HTML and drawings


def test_names_are_text_and_attributes_end_where_they_should():
    page = Parsed(html.page(HOSTILE, element("p", HOSTILE, title=f'" onclick="x" {HOSTILE}'),
                            element("td", "a\x00b\udcff\n", element("b", "&amp;"), HOSTILE)).decode())
    assert page.text.count(HOSTILE) == 3
    assert page.all("img") == page.all("script") == []
    (paragraph,) = page.all("p")
    assert paragraph == {"title": f'" onclick="x" {HOSTILE}'}
    assert "a?b??" in page.text
    assert "&amp;" in page.text


def test_the_policy_allows_only_what_is_in_the_page():
    page = html.page("one", element("p", "two")).decode()
    (policy,) = [one["content"] for one in Parsed(page).all("meta") if one.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    (style,) = re.findall(r"<style>(.*)</style>", page, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() in policy
    assert not re.search(r"https?:|url\(|@import|<script|\sstyle=|\son[a-z]+=", page)


@pytest.mark.parametrize(("low", "high", "expected"), [
    (0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (31.2, 37.9, [32, 34, 36]),
    (-1.84, 0.6, [-1.5, -1, -0.5, 0, 0.5]), (0, 48213, [0, 10000, 20000, 30000, 40000]), (3, 3, [3])])
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_long_curves_are_drawn_by_stretches():
    x, y = np.arange(1000.0), np.random.default_rng(0).standard_normal(1000)
    found = charts.stretches(x, y)
    assert all(len(one) == charts.STRETCHES for one in found)
    ends = [int(i * 1000 / charts.STRETCHES) for i in range(charts.STRETCHES + 1)]
    for i, (first, end) in enumerate(itertools.pairwise(ends)):
        piece = y[first:end]
        assert [one[i] for one in found[1:]] == pytest.approx([piece.mean(), piece.min(), piece.max()])
    assert charts.stretches(x[:5], y[:5])[1] is not None


def test_a_chart_has_its_numbers_in_their_places():
    x = np.array([1.0, 2, 4])
    figure = charts.chart(charts.Chart("Loss", [charts.Curve("loss", x, np.array([0.0, np.nan, 10])),
                                                charts.Curve("chance", x[:2], np.array([8.0, 8]), True)]))
    (curve,) = [one for one in figure.iter("path") if one.get("class") == "curve c0" and len(one.get("d")) > 8]
    places = np.array([pair.split(",") for pair in curve.get("d")[1:].split("L")], float)
    assert len(places) == 2  # NaN is left out
    assert places[1, 0] == charts.WIDTH - charts.RIGHT
    assert charts.TOP < places[1, 1] < places[0, 1] < charts.HEIGHT - charts.BOTTOM
    ticks = {one.text: float(one.get("y")) for one in figure.iter("text") if one.get("class") == "tick up"}
    assert ticks["0"] == pytest.approx(places[0, 1], abs=0.1)
    assert ticks["10"] == pytest.approx(places[1, 1], abs=0.1)
    (told,) = [one.get("aria-label") for one in figure.iter("svg") if one.get("role") == "img"]
    assert told == "Loss by epoch: loss from 0 to 10; chance 8"
    assert charts.chart(charts.Chart("None", [charts.Curve("none", x, x * np.nan)])) is None


def test_a_mark_stands_at_its_value():
    svg = charts.mark(50.0, [25.0, 100.0], 0.0)
    (dot,) = svg.iter("circle")
    assert float(dot.get("cx")) == charts.MARK_WIDTH / 2
    (whisker,) = [one for one in svg if "whisker" in one.get("class")]
    assert [float(whisker.get(name)) for name in ("x1", "x2")] == [4 + 0.25 * (charts.MARK_WIDTH - 8),
                                                                   charts.MARK_WIDTH - 4]


def test_a_map_has_every_point():
    places = np.array([[0, 0], [10, 5], [5, 5.0]], np.float32)
    svg = charts.scatter(places, np.array([0, 0, -1]), "a map")
    drawn = {one.get("class"): one.get("d") for one in svg.iter("path")}
    assert {name: path.count("M") for name, path in drawn.items()} == {"points other": 1, "points c0": 2}
    assert svg.get("viewBox") == "0 0 748 388"
    assert drawn["points c0"] == "M14.0,374.0h0M734.0,14.0h0"


# --------------------------------------------------------------------------------------------------------- runs


def test_a_run_is_read_whole_and_a_cut_off_line_is_left_out(tmp_path):
    config = write_run(tmp_path / "mine", epochs=3)
    with open(tmp_path / "mine" / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "loss": 1.')
    run = read_run(tmp_path / "mine")
    assert run.steps["step"].tolist() == list(range(1, 13))
    assert run.epochs.tolist() == [step / 4 for step in range(1, 13)]
    assert run.command == command_of(config)
    drawn = {one.title: one for one in charts_of(run)}
    assert drawn["kNN accuracy"].curves[0].y.tolist() == [34, 38, 42]
    assert drawn["kNN accuracy"].curves[0].x.tolist() == [1, 2, 3]
    assert drawn["Loss"].curves[1].y.tolist() == [3, 3]
    assert math.isnan(drawn["Uniformity and alignment"].curves[1].y[0])


def test_the_page_of_a_run(tmp_path):
    config = write_run(tmp_path / "mine", images=HOSTILE)
    result = make_report(ReportConfig((str(tmp_path / "mine"),), str(tmp_path / "r.html")))
    page = parsed(result.path)
    for text in (HOSTILE, "ln(K+1) = 3.00, chance", "42.00 % (k 20, 24 images)", command_of(config), "Waiting",
                 "12 steps, 3 of", "24 images, listing abababababab"):
        assert text in page.text, text
    assert page.all("img") == []
    assert "NaN" not in page.text
    assert "never learned from" not in page.text  # nobody keeps the images of --val apart
    (details,) = [one for one in run_section(read_run(tmp_path / "mine")).iter("details")]
    told = {name.text: value.text for name, value in zip(details.iter("dt"), details.iter("dd"))}
    assert told["queue size"] == str(config.queue_size)
    assert told["crop scale"] == ", ".join(f"{one:g}" for one in config.crop_scale)
    assert told["symmetric"] == "no"
    assert told["drop last"] == "yes"
    assert told["collection images"] == "24"
    assert {"given", "init", "exclude"}.isdisjoint(told)  # empty
    assert not any(set('[]{}"') & set(value) for value in told.values())
    assert (result.runs, result.results, result.size) == (1, 0, result.path.stat().st_size)


def test_a_real_run_has_what_the_report_asks_for(tmp_path, images):
    from mocoembed.train.loop import pretrain

    config = PretrainConfig.of("small", str(images), workspace=str(tmp_path), width=0.125, stem="3x3s2", dim=16,
                               queue_size=20, batch_size=8, bn_groups=2, image_size=16, epochs=2, workers=0,
                               device="cpu", val=str(images), val_every=1)
    run = read_run(pretrain(config).run)
    assert all(np.isfinite(values).all() for values in run.steps.values())
    assert run.steps_per_epoch == 3
    assert run.config["collection"]["images"] == 24
    assert all(charts.chart(one) is not None for one in charts_of(run))
    text = parsed(make_report(ReportConfig((str(tmp_path),), str(tmp_path / "r.html"))).path).text  # as a workspace
    assert f"Pretraining: {run.path.name}" in text
    assert run.command.endswith(f" --val {images} --val-every 1")


# ------------------------------------------------------------------------------------------------------- results


def test_every_number_of_the_results_stands_in_the_page(made, results, tmp_path, run_cli):
    write_run(tmp_path / "run")
    status, out, err = run_cli("report", tmp_path / "run", *results, "--html", tmp_path / "r.html", "--queries", 4)
    assert (status, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'r.html'}: 1 run, 4 results, ")
    page = parsed(tmp_path / "r.html")
    for path in results:
        value = json.loads(pathlib.Path(path).read_text())
        assert value["command"].startswith(f"MOCOEMBED_WORKSPACE='a place' mocoembed {value['task']} ")
        assert value["command"] in page.text
        for entry in (*value["results"], *value["baselines"]):
            for measure in measures_of(entry).values():
                assert f"{measure['value']:.2f}".replace("-", "−") in page.text
    assert HOSTILE in page.text
    tables = [one["aria-label"] for one in page.all("div") if one.get("role") == "region"]
    assert len(set(tables)) == len(tables)
    assert next(one for one in tables if "kNN accuracy" in one).endswith(": kNN accuracy: knn, table 1")
    assert all(one["src"].startswith("data:image/jpeg;base64,") for one in page.all("img"))
    assert len(page.all("img")) == 4 * 9
    assert any(one["alt"].startswith(f"{HOSTILE}, 0{HOSTILE}") for one in page.all("img"))
    assert page.all("script") == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(one["href"][1:] in ids for one in page.all("a"))


def test_the_overview_and_the_matrix():
    value = {"task": "knn", "unit": "percent", "results": [
        {"k": 3, "T": 0.1, "top1": 50.0, "values": {"top1": {"value": 50.0, "ci95": [40.0, 60.0], "n": 10}}}],
        "baselines": [{"name": "low", "top1": {"value": 10.0}}, {"name": "high", "top1": {"value": 30.0}}]}
    told = words_of(overview({"some/one.json": value}))
    assert told[-7:] == ["kNN accuracy: one", "top-1", "50.00", "40.00 to 60.00", "30.00 high", "k 3, T 0.1", "10"]
    cells = [(one.text, one.get("class")) for one in matrix(["a", "b"], [[8, 2], [0, 0]]).iter("td")]
    assert cells == [("8", "cell h8 right"), ("2", "cell h2"), ("·", "cell h0"), ("·", "cell h0 right")]


def test_sides_are_named_by_the_task_and_few_labels_by_seed(made, tmp_path, run_cli):
    split = [shutil.copy(made[1] / "embeddings.h5", tmp_path / f"{name}.h5") for name in ("one", "two")]
    found = {}
    for name, *more in (("linear", "--penalty", "1e-2"), ("knn", "--labels", "2-per-class", "-k", 2, "--seeds", 3)):
        status, out, err = run_cli(name, *split, *more, "--no-baselines", "--json")
        assert status == 0, err
        found[name] = json.loads(out)
    sections = {name: result_section(0, name, result) for name, result in found.items()}
    texts = {name: set(words_of(one)) for name, one in sections.items()}
    assert {"training images", "test images", "Fits", "Seeds and folds"} < texts["linear"]
    assert {"bank", "queries"}.isdisjoint(texts["linear"])
    assert {"bank", "queries", "Repeats", "Seeds"} < texts["knn"]
    (table,) = [one for one in sections["knn"].iter("table") if one.find("caption").text == "Seeds"]
    header, *rows = map(words_of, table.iter("tr"))
    assert header == ["seed", "bank", "queries", "k", "T", "top-1"]
    assert [float(row[-1]) for row in rows] == pytest.approx(
        [one["results"][0]["top1"] for one in found["knn"]["repeats"]], abs=0.01)


def test_comparisons(made, results, tmp_path, run_cli):
    other = tmp_path / "other.json"
    other.write_text(run_cli("knn", made[1] / "embeddings.h5", "-k", 5, "--json")[1])
    compared = tmp_path / "both.json"
    compared.write_text(run_cli("compare", results[0], other, "--anyway", "--json")[1])
    text = parsed(make_report(ReportConfig((str(compared),), str(tmp_path / "r.html"))).path).text
    difference = json.loads(compared.read_text())["differences"][0]
    assert f"{difference['value']:.2f}".replace("-", "−") in text
    assert "Not the same: k is [3]" in text


def test_many_classes_have_no_drawn_matrix(made, results, tmp_path):
    value = json.loads(pathlib.Path(results[0]).read_text())
    names = [f"class {i}" for i in range(80)]
    value["per_class"] = {name: {"count": 2, "top1": float(i)} for i, name in enumerate(names)}
    value["confusion"] = {"classes": names, "counts": [[1 + (j == 0) if j in (i, 0) else 0 for j in range(80)]
                                                       for i in range(80)]}
    pathlib.Path(results[0]).write_text(json.dumps(value))
    page = parsed(make_report(ReportConfig((results[0],), str(tmp_path / "r.html"), queries=0)).path)
    assert "The 60 of 80 classes with the lowest top-1" in page.text
    assert "The most frequent confusions" in page.text
    assert not any(one.get("class") == "matrix" for one in page.all("table"))


# ------------------------------------------------------------------------------------------------ images and the map


def test_a_report_of_results_needs_no_torch(results, tmp_path):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "report", *results, "--html", str(tmp_path / "r.html")],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Nearest neighbours" in parsed(tmp_path / "r.html").text


def test_images_that_have_changed_or_are_gone_are_not_shown(make_images, workspace, tmp_path, run_cli):
    folder = make_images(tmp_path / "images", 2)
    root = pathlib.Path(shutil.copytree(workspace, tmp_path / "ws"))
    embed_images(EmbedConfig(str(folder), workspace=str(root), workers=0, device="cpu", fresh=True))
    (folder / "red" / "000.png").unlink()
    shutil.copy(folder / "blue" / "000.png", folder / "green" / "000.png")
    status, _, err = run_cli("report", root, "--html", tmp_path / "r.html", "--queries", 6)
    assert status == 0
    page = parsed(tmp_path / "r.html")
    assert page.text.count("not there") == 12  # each once as a query, and in the lines of the five others
    assert len(page.all("img")) == 24
    assert "no thumbnail of" in err


def test_embeddings_that_have_been_replaced_are_not_shown(made, results, tmp_path):
    value = json.loads(pathlib.Path(results[0]).read_text())
    value["data"]["bank"]["identity"] = value["data"]["queries"]["identity"] = "0" * 64
    pathlib.Path(results[0]).write_text(json.dumps(value))
    notes = []
    page = parsed(make_report(ReportConfig((results[0],), str(tmp_path / "r.html")), notes.append).path)
    assert page.all("img") == []
    assert "are not there or have changed" in notes[0]


def test_a_result_of_a_folder_of_images_has_no_neighbours(made, results, tmp_path):
    value = json.loads(pathlib.Path(results[0]).read_text())
    value["data"]["bank"]["path"] = value["data"]["queries"]["path"] = str(tmp_path)
    value["solver"] = {"loss": [i / 7 for i in range(100)], "backbone": {"unchanged": True}}
    pathlib.Path(results[0]).write_text(json.dumps(value))
    notes = []
    text = parsed(make_report(ReportConfig((results[0],), str(tmp_path / "r.html")), notes.append).path).text
    assert "was measured on images" in notes[0]
    assert "0 ... 14.14 (100 values)" in text
    assert "backbone unchanged" in text


def test_the_map_of_the_same_rows(fresh_workspace, tmp_path):
    from mocoembed.embed.store import EmbeddingFile

    with EmbeddingFile(fresh_workspace / "embeddings.h5") as file:
        ids, identity = file.ids(), file.identity
    places = np.random.default_rng(0).standard_normal((24, 2)).astype(np.float32)
    agreement = np.full(24, 0.5, np.float32)
    write_map(fresh_workspace / "embeddings.map", ImageMap(identity, "t-SNE", ids, places, agreement))
    config, notes = ReportConfig((str(fresh_workspace),), str(tmp_path / "r.html"), queries=0), []
    text = parsed(make_report(config, notes.append).path).text
    assert "24 images by t-SNE" in text
    assert "50.0 % of the ten nearest neighbours share the label" in text
    write_map(fresh_workspace / "embeddings.map", ImageMap("0" * 64, "t-SNE", ids, places, agreement))
    assert "by t-SNE" not in parsed(make_report(config, notes.append).path).text
    assert "of other embeddings" in notes[0]


# ------------------------------------------------------------------------------------------------------ wrong input


def test_what_cannot_be_reported(tmp_path, results, made):
    output, bad = str(tmp_path / "r.html"), tmp_path / "bad.json"
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.json").write_text("{}")
    whole = json.loads(pathlib.Path(results[0]).read_text())
    for text, said in (("{", "is not JSON"), ("[]", "not a result"), (json.dumps({**whole, "schema": 2}), "schema 2"),
                       (json.dumps({**whole, "results": []}), "not whole, or changed by hand"),
                       (json.dumps({**whole, "data": 3}), "not whole, or changed by hand"),
                       ('{"kind": "mocoembed comparison", "schema": 7}', "schema 7 of comparisons"),
                       ('{"kind": "mocoembed comparison", "schema": 1}', "not whole, or changed by hand")):
        bad.write_text(text)
        with pytest.raises(FormatError, match=said):
            make_report(ReportConfig((str(bad),), output))
    bad.write_bytes(b"\xff\x00")
    for error, source, said in ((FormatError, bad, "is not JSON"), (UsageError, tmp_path / "no", "does not exist"),
                                (UsageError, tmp_path / "empty", "neither a run folder nor a workspace"),
                                (FormatError, tmp_path / "begun", "is a run without a step")):
        with pytest.raises(error, match=said):
            make_report(ReportConfig((results[0], str(source)), output))
    assert not pathlib.Path(output).exists()
    with pytest.raises(UsageError, match="given twice"):
        ReportConfig(("a.json", "a.json"))
    with pytest.raises(UsageError, match=r"--html r.pdf: must be a name that ends in .html"):
        ReportConfig(html="r.pdf")


def test_only_a_report_is_replaced(tmp_path, run_cli):
    write_run(tmp_path / "run")
    page = tmp_path / "r.html"
    page.write_text("<p>mine</p>")
    status, out, err = run_cli("report", tmp_path / "run", "--html", page)
    assert (status, out) == (2, "")
    assert "exists and is not a report" in err
    assert page.read_text() == "<p>mine</p>"
    page.unlink()
    assert run_cli("report", tmp_path / "run", "--html", page)[0] == 0
    first = page.read_bytes()
    assert run_cli("report", tmp_path / "run", "--html", page)[0] == 0
    assert run_cli("report", tmp_path / "no", "--html", page)[0] == 2
    assert len(page.read_bytes()) == len(first)
    (tmp_path / "folder.html").mkdir()
    assert "is a folder" in run_cli("report", tmp_path / "run", "--html", tmp_path / "folder.html")[2]


# ------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the report: Playwright is not installed")
    if CHROMIUM is None:
        text = "The report is not tested in a browser: there is no chromium here (apt-get install chromium)."
        warnings.warn(text, stacklevel=2)
        pytest.skip(text)
    with (playwright.sync_playwright() as driver,
          driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as running):
        yield running


def test_in_a_browser(browser, made, results, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    write_run(tmp_path / HOSTILE, images=HOSTILE)
    value, names = json.loads(pathlib.Path(results[0]).read_text()), [f"class {i}" for i in range(11)]
    value["confusion"] = {"classes": names, "counts": [[10 * i if i == j else 100 - 10 * i if j == (i + 1) % 11 else 0
                                                        for j in range(11)] for i in range(11)]}  # every shade
    pathlib.Path(results[0]).write_text(json.dumps(value))
    result = make_report(ReportConfig((str(tmp_path / HOSTILE), *results), str(tmp_path / "r.html"), queries=3))
    for width, height in SIZES:
        for scheme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
            page, said = context.new_page(), []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("pageerror", lambda error, said=said: said.append(str(error)))
            page.on("request", lambda request, said=said: None if request.url.startswith(("data:", "file:"))
                    else said.append(request.url))
            page.goto(result.path.as_uri())
            assert page.evaluate("window.hacked") is None
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)")
            assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == \
                {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 20, 23)"}[scheme]
            assert page.locator("h1").inner_text().startswith(HOSTILE)
            found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
            assert not found, [(one["id"], [node["target"] for node in one["nodes"]][:3]) for one in found]
            assert said == []
            context.close()
    page = browser.new_page(viewport={"width": 700, "height": 1000})  # A4 between margins
    page.emulate_media(media="print")
    page.goto(result.path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.close()
