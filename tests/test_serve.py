"""The API that the page uses: what it answers, compared with the library."""

import io
import json
import os
import pathlib
import re
import shutil
import sys
import threading
import time
from collections import Counter

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import Running

from mocoembed.config import DuplicatesConfig, EmbedConfig, IndexConfig, SearchConfig
from mocoembed.embed.extract import embed_images
from mocoembed.embed.store import EmbeddingFile
from mocoembed.files import is_running
from mocoembed.search.build import build_index
from mocoembed.search.duplicates import Components, find_duplicates
from mocoembed.search.map_file import ImageMap, map_file_of, write_map
from mocoembed.search.query import Searcher, search_images
from mocoembed.serve import collection, mapping, routes
from mocoembed.serve.health import _votes

DOCS = pathlib.Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="module")
def running(indexed_workspace):
    running = Running(workspace=str(indexed_workspace))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def first_image(images):
    return images / "blue" / "000.png"


def search(running, content=None, *, status=200, json=None, **params) -> list[list[dict]]:
    headers = {"Content-Type": "image/png"} if json is None else {}
    answer = running.client.post("/api/search", params=params, content=content, json=json, headers=headers)
    assert answer.status_code == status, answer.text
    return [query["hits"] for query in answer.json()["queries"]] if status == 200 else answer.json()["error"]


def test_an_upload_finds_what_the_command_line_finds(running, indexed_workspace, first_image):
    (hits,) = search(running, first_image.read_bytes(), k=4)
    (expected,) = search_images(SearchConfig((str(first_image),), str(indexed_workspace), k=4))
    assert [hit["row"] for hit in hits] == [hit.row for hit in expected.hits]
    for hit, other in zip(hits, expected.hits):
        assert other.as_json().items() <= {**hit, "score": other.score}.items()
        assert hit["score"] == pytest.approx(other.score, abs=1e-6)
        assert (hit["width"], hit["height"]) == Image.open(other.path).size
        assert isinstance(hit["id"], str)


def test_rows_ids_paths_and_vectors_name_the_same_query(running, indexed_workspace):
    with EmbeddingFile(indexed_workspace / "embeddings.h5") as file:
        ids, paths, vector = file.ids(), file.paths(), file.embeddings[5]
        full = os.fsdecode(file.full_path(5))
    first = search(running, json={"rows": [5]}, k=6)
    assert first[0][0]["row"] == 5
    for body in ({"ids": [str(ids[5])]}, {"paths": [os.fsdecode(paths[5])]}, {"paths": [full]},
                 {"vectors": [[float(x) for x in vector]]}):
        assert search(running, json=body, k=6) == first
    assert [hits[0]["row"] for hits in search(running, json={"rows": [7, 2, 7]}, k=1)] == [7, 2, 7]


def test_offset_goes_on_where_the_hits_before_ended(running):
    (whole,) = search(running, json={"rows": [3]}, k=9)
    (rest,) = search(running, json={"rows": [3]}, k=5, offset=4)
    assert rest == whole[4:9]
    assert rest[0]["rank"] == 5
    assert search(running, json={"rows": [3]}, offset=500) == [[]]


def test_a_collection_that_is_not_small_is_searched_on_another_thread_with_the_same_hits(running, monkeypatch):
    asked = {"rows": [3]}
    here = search(running, json=asked, k=5)
    seen = []
    answer = routes._answer
    monkeypatch.setattr(routes, "_answer", lambda *rest: (seen.append(threading.current_thread().name),
                                                          answer(*rest))[1])
    assert search(running, json=asked, k=5) == here
    monkeypatch.setattr(collection, "SMALL", 0)
    assert search(running, json=asked, k=5) == here
    assert [name.startswith("search") for name in seen] == [False, True]


def test_filters_and_wishes(running, indexed_workspace):
    (hits,) = search(running, json={"rows": [0]}, k=100, label=["red", "green"])
    assert {hit["label"] for hit in hits} == {"red", "green"}
    (hits,) = search(running, json={"rows": [0]}, k=100, not_label="red", path="00[0-3].*", exclude_self="true")
    assert len(hits) == 7
    assert 0 not in [hit["row"] for hit in hits]
    (hits,) = search(running, json={"rows": [0]}, k=100, min_side=40)
    assert len(hits) == 24
    search(running, json={"rows": [0]}, min_side=41, status=404)
    (hits,) = search(running, json={"rows": [0]}, k=100, min_score=0.99)
    assert all(hit["score"] >= 0.99 for hit in hits)
    (hits,) = search(running, json={"rows": [0]}, k=3, unique="true", diverse="true")
    assert len(hits) == 3
    assert all(hit["folded"] >= 0 for hit in hits)


def test_more_like_these_less_like_those(running, indexed_workspace):
    (hits,) = search(running, json={"like": [0, 1], "unlike": [20]}, k=30)
    assert {0, 1, 20}.isdisjoint(hit["row"] for hit in hits)
    with Searcher.open(indexed_workspace, encoder=False) as searcher:
        vectors = searcher.file.embeddings[:].astype(np.float64)
    query = vectors[:2].mean(axis=0) - vectors[20]
    scores = vectors @ (query / np.linalg.norm(query))
    order = [row for row in np.argsort(-scores) if row not in (0, 1, 20)]
    assert [hit["row"] for hit in hits] == order
    with EmbeddingFile(indexed_workspace / "embeddings.h5") as file:
        ids = [str(number) for number in file.ids()]
    assert search(running, json={"like": [ids[0], 1], "unlike": [ids[20]]}, k=30) == [hits]
    as_vector = [float(x) for x in vectors[0]]
    (hits,) = search(running, json={"like": [as_vector, 1], "unlike": [20]}, k=30)
    assert [hit["row"] for hit in hits] == [row for row in np.argsort(-scores) if row not in (1, 20)]


def test_a_crop_is_searched_for(running, first_image, indexed_workspace):
    (hits,) = search(running, first_image.read_bytes(), k=24, crop="2,3,20,24")
    (expected,) = search_images(SearchConfig((str(first_image),), str(indexed_workspace), k=24, crop=(2, 3, 20, 24)))
    assert [hit["row"] for hit in hits] == [hit.row for hit in expected.hits]
    assert search(running, json={"rows": [0]}, k=24, crop="2,3,20,24")[0] == hits
    assert "inside" in search(running, first_image.read_bytes(), crop="2,3,2000,24", status=400)
    assert "crop" in search(running, json={"rows": [0, 1]}, crop="2,3,20,24", status=400)


def test_embed_gives_the_vector_that_search_takes(running, first_image, indexed_workspace):
    answer = running.client.post("/api/embed", content=first_image.read_bytes()).json()
    with EmbeddingFile(indexed_workspace / "embeddings.h5") as file:
        np.testing.assert_allclose(answer["vectors"][0], file.embeddings[0], atol=0.02)
        assert answer["encoder"] == file.fingerprint
        many = running.client.post("/api/embed", json={"rows": [1, 2]}).json()
        assert many["vectors"] == file.embeddings[1:3].astype(float).tolist()
    assert search(running, json={"vectors": answer["vectors"]}, k=1)[0][0]["row"] == 0


def test_an_image_that_a_browser_cannot_decode_comes_as_jpeg(running, first_image):
    with Image.open(first_image) as image:
        wide = image.convert("RGB").resize((60, 40))
        data, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6  # to be turned
        wide.save(data, "TIFF", exif=exif)
    answer = running.client.post("/api/preview", content=data.getvalue(), headers={"Content-Type": "image/tiff"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    with Image.open(io.BytesIO(answer.content)) as shown:
        assert (shown.format, shown.size, dict(shown.getexif())) == ("JPEG", (40, 60), {})
        assert np.abs(np.asarray(shown, int) - np.asarray(wide.rotate(-90, expand=True), int)).mean() < 6
    bad = running.client.post("/api/preview", content=b"nothing")
    assert (bad.status_code, bad.json()["error"]) == (422, "The image 'query' cannot be decoded: cannot identify "
                                                      "image file, which starts with 'nothing'.")
    assert running.client.post("/api/preview", json={"rows": [1]}).status_code == 415
    assert running.client.post("/api/preview?size=3", content=data.getvalue()).status_code == 400


@pytest.mark.parametrize("parameters", ["", "&crop=2,3,20,24"])
def test_what_a_query_is_itself_can_be_left_out_of_a_search_by_its_vector(running, first_image, parameters):
    for sent in ({"content": first_image.read_bytes()}, {"json": {"rows": [0]}}):
        answer = running.client.post(f"/api/embed?selves=true{parameters}", **sent).json()
        assert answer["selves"] == [[0]]
        vectors = {"vectors": answer["vectors"] * 2, "selves": [[0], [0, 1, 2]]}
        for wished, left_out in (({}, [set(), set()]), ({"exclude_self": "true"}, [{0}, {0, 1, 2}])):
            found = search(running, json=vectors, k=24, **wished)
            assert [set(range(24)) - {hit["row"] for hit in hits} for hits in found] == left_out


@pytest.mark.parametrize(("body", "said"), [
    ({}, "must have one of"), ({"rows": []}, "1 to 256"), ({"rows": [1.0]}, "no row"), ({"rows": [True]}, "no row"),
    ({"rows": ["1"]}, "no row"), ({"rows": [-1]}, "no row"), ({"rows": [24]}, "rows are 0 to 23"),
    ({"rows": [10**40]}, "no row"), ({"ids": [3]}, "texts of digits"), ({"ids": ["9" * 19]}, "no id"),
    ({"ids": ["1"]}, "no image"), ({"paths": ["../../etc/passwd"]}, "no image"), ({"paths": ["\ud800"]}, "no path"),
    ({"paths": ["a\0b"]}, "no image"), ({"paths": [3]}, "no path"),
    ({"paths": ["http://127.0.0.1/1.jpg"]}, "no image"), ({"paths": ["file:///etc/passwd"]}, "no image"),
    ({"vectors": [[1.0]]}, "64 numbers"), ({"vectors": [[0.1] * 64], "selves": [[1], [2]]}, "selves"),
    ({"vectors": [[0.1] * 64], "selves": [1]}, "selves"), ({"vectors": [[0.1] * 64], "selves": [[24]]}, "no row 24"),
    ({"rows": [1], "selves": [[1]]}, "must have one of"),
    ({"vectors": [["a"] * 64]}, "64 numbers"), ({"vectors": [[1e300] * 64]}, "too large"),
    ({"vectors": [[10**400] * 64]}, "too large"), ({"rows": [1], "ids": ["1"]}, "must have one of"),
    ({"unlike": [1]}, "must have one of"), ({"like": ["1"]}, "no image"), ({"like": ["x"]}, "texts of digits"),
    ({"like": [1], "unlike": [1]}, "have the same vector"),
    ({"like": []}, "1 to 256"), ({"like": "abc"}, "1 to 256"), ({"rows": [0] * 257}, "1 to 256")])
def test_wrong_queries_are_explained(running, body, said):
    answer = running.client.post("/api/search", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 404), answer.text
    assert said in answer.json()["error"]


@pytest.mark.parametrize("data", [b"", b"[]", b"nonsense", b"[" * 100_000, b'{"rows": [NaN]}', b'"\xff"', b"{" * 99])
def test_bodies_that_are_no_json_object_are_refused(running, data):
    answer = running.client.post("/api/search", content=data, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert "JSON" in answer.json()["error"]


@pytest.mark.parametrize(("params", "said"), [
    ({"k": "0"}, "from 1 to 1000"), ({"k": "1001"}, "from 1 to 1000"), ({"k": "two"}, "whole number"),
    ({"k": ["1", "2"]}, "2 times"), ({"lable": "red"}, "Unknown parameter 'lable'"), ({"label": "rad"}, "'red'"),
    ({"min_score": "nan"}, "number"), ({"min_score": "1e999"}, "number"), ({"unique": "yes"}, "true or false"),
    ({"crop": "1,2,3"}, "four numbers"), ({"path": "/etc"}, "relative to the collection"),
    ({"path": "nix*"}, "0 of 24"),
    ({"label": "x" * 1001}, "characters"), ({"label": ["red"] * 51}, "at most 50"), ({"min_side": "5000"}, "0 of 24"),
    ({"k": "٣"}, "whole number"), ({"offset": "-1"}, "from 0")])
def test_wrong_parameters_are_explained(running, params, said):
    is_nothing = {"label", "path", "min_side"} & set(params) and said in ("'red'", "0 of 24")
    assert said in search(running, json={"rows": [0]}, status=404 if is_nothing else 400, **params)


def test_what_is_no_image_is_refused(running, first_image):
    for data in (b"", b"no image", first_image.read_bytes()[:60], b"GIF89a" + bytes(50)):
        assert "cannot be read" in search(running, data, status=422)
    answer = running.client.post("/api/search", content=b"x", headers={"Content-Type": "text/html"})
    assert answer.status_code == 415


def test_images_are_upright_jpeg_files_without_metadata(running, images, indexed_workspace):
    answer = running.get("/api/images/1")
    with EmbeddingFile(indexed_workspace / "embeddings.h5") as file:
        shown, original = Image.open(io.BytesIO(answer.content)), Image.open(file.full_path(1))
    assert (shown.format, shown.size) == ("JPEG", original.size)
    assert np.abs(np.asarray(shown, np.int32) - np.asarray(original.convert("RGB"), np.int32)).mean() < 8
    assert not shown.getexif()
    assert Image.open(io.BytesIO(running.get("/api/images/1?size=16").content)).size[0] == 16
    small = running.get("/api/thumbnails/1")
    assert small.headers["content-type"] == "image/jpeg"
    assert running.get("/api/thumbnails/1", **{"If-None-Match": small.headers["etag"]}).status_code == 304
    for path in ("/api/images/24", "/api/images/-1", "/api/images/x", "/api/thumbnails/" + "9" * 400):
        assert running.get(path).status_code == 404, path
    assert running.get("/api/images/1?size=5").status_code == 400


def test_metadata_and_orientation_do_not_come_out(tmp_path, make_encoder, workspace):
    (tmp_path / "photos").mkdir()
    pixels = np.zeros((40, 400, 3), np.uint8)
    pixels[:, :200] = 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a secret place"
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.jpg", exif=exif, comment=b"a secret place")
    shutil.copytree(workspace, tmp_path / "ws")
    embed_images(EmbedConfig(str(tmp_path / "photos"), workspace=str(tmp_path / "ws"), workers=0, device="cpu",
                             fresh=True))
    running = Running(workspace=str(tmp_path / "ws"))
    try:
        for path, size in (("/api/images/0", (40, 400)), ("/api/thumbnails/0", (32, 320))):
            data = running.get(path).content
            shown = Image.open(io.BytesIO(data))
            assert shown.size == size
            assert b"secret" not in data
            assert shown.getpixel((5, 10))[0] > 200
        (facts,) = running.get("/api/rows").json()["rows"]
        assert (facts["width"], facts["height"]) == (40, 400)
    finally:
        running.stop()


def test_rows_samples_and_labels(running):
    answer = running.get("/api/labels").json()
    labels, total = answer["labels"], answer["total"]
    assert (labels, total) == ([{"label": name, "count": 8} for name in ("blue", "green", "red")], 3)
    assert running.get("/api/labels?offset=1&limit=1").json()["labels"] == labels[1:2]
    assert running.get("/api/labels?text=RE").json()["labels"] == labels[1:]
    found = running.get("/api/rows?label=red&offset=6&limit=5").json()
    assert (found["total"], [one["label"] for one in found["rows"]]) == (8, ["red", "red"])
    one, again, other = (running.get(f"/api/rows?sample=6&seed={seed}").json()["rows"] for seed in (1, 1, 2))
    assert one == again != other
    assert len({row["row"] for row in one}) == 6
    ids = [row["id"] for row in one[:3]]
    named = running.get(f"/api/rows?ids={','.join([ids[0], '1', ids[2], str(2**63)])}").json()
    assert (named["total"], [row["id"] for row in named["rows"]]) == (2, [ids[0], ids[2]])
    assert running.get("/api/rows?ids=1").json()["rows"] == []
    assert running.get("/api/rows?ids=1,x").status_code == 400
    assert "not both" in running.get("/api/rows?ids=1&rows=1").json()["error"]
    info = running.get("/api/info").json()
    assert (info["count"], info["dimension"], info["index"]["recall_at_10"]) == (24, 64, 1.0)
    assert (info["labels"], info["labels_total"]) == (labels, 3)


def test_of_many_labels_facts_and_the_map_have_the_first(make_embeddings, tmp_path):
    classes = [*(f"L{number}" for number in range(300)), "l7", "?", "L250", "L250"]
    running = Running(embeddings=make_embeddings("many", np.eye(len(classes)), classes, normalized=True),
                      workspace=str(tmp_path))
    try:
        info = running.get("/api/info").json()
        assert (len(info["labels"]), info["labels_total"]) == (100, 302)
        assert info["labels"][:2] == [{"label": None, "count": 1}, {"label": "L250", "count": 3}]
        assert len(running.get("/api/labels").json()["labels"]) == 100
        assert len(running.get("/api/labels?limit=1000&offset=2").json()["labels"]) == 300
        found = running.get("/api/labels?text=l7").json()
        assert (found["total"], [one["label"] for one in found["labels"][:3]]) == (12, ["l7", "L7", "L70"])
        answer = running.get("/api/health-report")
        while answer.status_code == 202:
            answer = running.get("/api/health-report")
        assert (len(answer.json()["labels"]), answer.json()["labels_total"]) == (100, 302)
        with EmbeddingFile(tmp_path / "many.h5") as file:
            write_map(map_file_of(file.path), ImageMap(file.identity, "PCA", file.ids(), file.embeddings()[:, :2],
                                                       np.full(len(file), np.nan, np.float32)))
            own = [file.label_names[label] if label >= 0 else None for label in file.labels()]
        made = running.get("/api/map").json()
        assert len(made["label_names"]) == 100
        assert made["label_names"][0] == "L250"  # three images have it
        assert {label for label, name in zip(made["labels"], own) if name is None} == {-1}
        assert len(set(made["labels"])) == 302
        assert all(made["label_names"][label] == name for label, name in zip(made["labels"], own) if 0 <= label < 100)
    finally:
        running.stop()


def test_neighbours_vote_on_labels():
    """For the own label and for the other one with the most votes; images without a label have none and win none."""
    random = np.random.default_rng(0)
    theirs, labels = random.integers(-1, 4, (200, 5)), random.integers(-1, 4, 200)
    for its, label, own, other, most in zip(theirs, labels, *_votes(theirs, labels)):
        counts = Counter(one for one in its.tolist() if one >= 0)
        assert own == (counts.pop(int(label), 0) if label >= 0 else 0)
        assert most == max(counts.values(), default=0)
        assert not most or counts[int(other)] == most


def test_duplicates_are_those_of_the_command_at_any_threshold(running, indexed_workspace):
    answer = running.get("/api/duplicates")
    while answer.status_code == 202:
        answer = running.get("/api/duplicates")
    auto = answer.json()
    for threshold in (auto["least"], auto["auto"], (auto["auto"] + 1) / 2):
        expected = find_duplicates(DuplicatesConfig(workspace=str(indexed_workspace), threshold=threshold))
        found = running.get(f"/api/duplicates?threshold={threshold}").json()
        assert sorted(sorted(one["row"] for one in group["members"]) for group in found["groups"]) == \
            sorted(sorted(one.row for one in group.members) for group in expected.groups)
        assert found["extra"] == expected.extra
    assert "must be from" in running.get("/api/duplicates?threshold=0.1").json()["error"]


def test_pairs_are_joined_as_rows_are():
    random = np.random.default_rng(0)
    for count in (0, 5, 40, 200):
        a, b = random.integers(0, 100, (2, count))
        slow, quick = Components(100), Components(100)
        for pair in zip(a, b):
            slow.join(np.array(pair))
        quick.join_pairs(a, b)
        assert [list(group) for group in quick.groups()] == [list(group) for group in slow.groups()]


def test_health_and_metrics(running, first_image, monkeypatch):
    search(running, first_image.read_bytes())
    assert running.get("/api/live").json() == {"status": "live"}
    assert running.get("/api/ready").json() == {"status": "ready"}
    with monkeypatch.context() as before:
        before.setattr(running.service, "_warm_up", lambda collection: None)  # else it is ready within a second
        before.setattr(running.service, "ready", False)
        answer = running.get("/api/ready")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "mocoembed_ready 0" in running.get("/metrics").text
    described = set(re.findall(r"mocoembed_\w+", (DOCS / "serving.md").read_text(encoding="utf-8")))
    assert described == set(re.findall(r"(?m)^# TYPE (\w+)", running.get("/metrics").text))
    text = running.get("/metrics").text
    assert 'mocoembed_requests_total{route="/api/search",method="POST",status="200"}' in text
    assert 'mocoembed_request_seconds_bucket{route="/api/search",le="+Inf"}' in text
    assert "mocoembed_batch_size_count" in text
    assert "mocoembed_index_age_seconds" in text


def test_simultaneous_uploads_are_embedded_together(running, images):
    files = sorted(images.rglob("*.png"))
    alone = [search(running, file.read_bytes(), k=3)[0] for file in files]
    sizes = []
    running.service.batches._tell = sizes.append
    together: dict = {}

    def ask(place):
        with httpx.Client(base_url=running.client.base_url, timeout=20) as client:
            answer = client.post("/api/search?k=3", content=files[place].read_bytes())
            together[place] = answer.json()["queries"][0]["hits"]

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(files))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(sizes) == len(files)
    for place, hits in enumerate(alone):
        assert [hit["row"] for hit in together[place]] == [hit["row"] for hit in hits]


def test_names_that_are_not_utf8_are_served(tmp_path, workspace, make_images):
    folder = tmp_path / "photos"
    make_images(folder, 1)
    odd = os.fsencode(folder) + b"/red/caf\xe9 <img src=x onerror=alert(1)>.png"
    os.rename(folder / "red" / "000.png", odd)
    shutil.copytree(workspace, tmp_path / "ws")
    embed_images(EmbedConfig(str(folder), workspace=str(tmp_path / "ws"), workers=0, device="cpu", fresh=True))
    build_index(IndexConfig(workspace=str(tmp_path / "ws"), fresh=True))
    running = Running(workspace=str(tmp_path / "ws"))
    try:
        rows = running.get("/api/rows").json()["rows"]
        path = next(row["path"] for row in rows if row["label"] == "red")
        assert os.fsencode(path) == odd
        (hits,) = search(running, pathlib.Path(os.fsdecode(odd)).read_bytes(), k=1)
        assert os.fsencode(hits[0]["path"]) == odd
        answer = running.client.post("/api/search?k=1", content=json.dumps({"paths": [path]}),
                                     headers={"Content-Type": "application/json"})
        assert answer.json()["queries"][0]["hits"][0]["path"] == path
        assert running.get(f"/api/thumbnails/{hits[0]['row']}").status_code == 200
    finally:
        running.stop()


def test_hits_tell_the_rows_that_are_folded_into_them(running, indexed_workspace):
    (hits,) = search(running, json={"rows": [0]}, k=100, unique="true")
    (all_hits,) = search(running, json={"rows": [0]}, k=100)
    assert all(hit["folded"] == len(hit["folded_rows"]) for hit in hits)
    told = [row for hit in hits for row in (hit["row"], *hit["folded_rows"])]
    assert sorted(told) == sorted(hit["row"] for hit in all_hits)


def test_the_map_is_made_beside_serving(indexed_workspace, tmp_path):
    root = shutil.copytree(indexed_workspace, tmp_path / "ws")
    running = Running(workspace=str(root), map=True)
    try:
        end = time.monotonic() + 300
        while not (found := running.client.get("/api/info").json()["map"]) or found["provisional"]:
            assert time.monotonic() < end, running.notes
            time.sleep(0.2)
        points = running.client.get("/api/map").json()
        assert (found["method"], points["method"], points["provisional"]) == ("t-SNE", "t-SNE", False)
        assert len(points["points"]) == running.client.get("/api/info").json()["count"]
    finally:
        running.stop()


def test_how_far_the_map_is_and_why_there_is_none_are_told(indexed_workspace, tmp_path, monkeypatch):
    root, stop = shutil.copytree(indexed_workspace, tmp_path / "ws"), tmp_path / "stop"
    script = ("import os, sys, time\nprint('map: 3 of 9 steps', file=sys.stderr, flush=True)\n"
              f"while not os.path.exists({str(stop)!r}): time.sleep(0.05)\nsys.exit('no room')\n")
    monkeypatch.setattr(mapping, "COMMAND", (sys.executable, "-c", script))
    running = Running(workspace=str(root), map=True)

    def told(wanted):
        for _ in range(400):
            if running.get("/api/info").json()["map_progress"] == wanted:
                return True
            time.sleep(0.05)
        return False

    try:
        assert told("map: 3 of 9 steps")
        stop.touch()
        assert told(None)
        assert "The map was not made: map: 3 of 9 steps\nno room" in running.notes
    finally:
        running.stop()


def test_the_map_that_is_being_made_ends_with_the_server(indexed_workspace, tmp_path, monkeypatch):
    root = shutil.copytree(indexed_workspace, tmp_path / "ws")
    monkeypatch.setattr(mapping, "COMMAND", (sys.executable, "-c", "import time; time.sleep(1000)"))
    running = Running(workspace=str(root), map=True)
    while not (processes := running.service.mapping.running):
        time.sleep(0.01)
    running.stop()
    assert not is_running(str(processes))
