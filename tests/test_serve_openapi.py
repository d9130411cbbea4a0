"""The running server against its own description, by Schemathesis, and the health report."""

import json

import jsonschema_rs
import numpy as np
import pytest
from serving import Running

from mocoembed.serve.openapi import description

EXAMPLES = 15  # for each operation


def closed(schema):
    """The schema with no other fields than those that are described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(one) for name, one in schema.items()}
    return {**found, "additionalProperties": False} if isinstance(found.get("required"), list) else found


@pytest.fixture(scope="module")
def running(indexed_workspace):
    running = Running(workspace=str(indexed_workspace))
    yield running
    running.stop()


def test_every_route_is_described(running):
    paths = {route.path for route in running.routes() if route.path.startswith("/api/") or route.path == "/metrics"}
    assert {path.replace(":int", "") for path in paths} == set(description()["paths"])
    assert running.get("/api/openapi.json").json() == json.loads(json.dumps(description()))


def test_suspected_labels_and_outliers(make_embeddings, tmp_path):
    """Two clusters, one image with the other's label, one far away."""
    random = np.random.default_rng(0)
    first, second = random.normal(0, 0.05, (2, 15, 3))
    corners = np.eye(3)
    vectors = np.concatenate([first + corners[0], second + corners[1], corners[2:]])
    classes = list("a" * 15 + "b" * 15 + "b")
    classes[4] = "b"
    path = make_embeddings("two", vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "".join(classes),
                           normalized=True)
    running = Running(embeddings=path, workspace=str(tmp_path))
    try:
        answer = running.get("/api/health-report")
        while answer.status_code == 202:
            answer = running.get("/api/health-report")
        found = answer.json()
        while (answer := running.get("/api/duplicates")).status_code == 202:
            pass
        groups = running.get(f"/api/duplicates?threshold={answer.json()['least']}").json()
        assert groups["groups"]
        for path, one in (("health-report", found), ("duplicates", groups)):  # with all that Schemathesis may not see
            responses = closed(description())["paths"][f"/api/{path}"]["get"]["responses"]
            jsonschema_rs.validate(responses["200"]["content"]["application/json"]["schema"], one)
        assert [(one["path"][-8:], one["label"], one["suggested"]) for one in found["suspected_labels"]] == [
            ("0004.png", "b", "a")]
        assert found["outliers"][0]["path"].endswith("0030.png")
        assert found["suffixes"] == [{"suffix": ".png", "count": 31}]
        assert (found["images"], found["failed_images"], found["suspected_total"]) == (31, 0, 1)
    finally:
        running.stop()


def test_the_server_is_as_it_describes_itself(running):
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis.specs.openapi.checks import positive_data_acceptance  # whether a row is there is not in a schema

    schema = schemathesis.openapi.from_dict(closed(description()))
    schema.config.update(base_url=f"http://127.0.0.1:{running.port}")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 15
    for operation in operations:
        modes = [operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode]

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None,
                  phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        @given(case=st.one_of(modes))
        def check(case):
            case.call_and_validate(excluded_checks=[positive_data_acceptance])

        check()
