"""The OpenAPI document says what is so: schemathesis asks the real server what the document allows, and what not."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sealed_server import Serve

EXAMPLES = os.environ.get("STRONGROOM_SCHEMATHESIS_EXAMPLES", "5")
"""For each operation and phase; a longer run sets it higher."""

# Which names, dtypes and shapes a model takes says more than a schema can; and 1.0, which is an integer to
# JSON Schema, is none here.
CONFIG = """
[checks.positive_data_acceptance]
expected-statuses = [200, 400, 403, 404, 413]
[checks.negative_data_rejection]
expected-statuses = [400, 403, 404, 405, 413]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Serve.of_all(tmp_path_factory.mktemp("openapi"))
    yield made
    try:
        made.check_health()
    finally:
        made.kill()


@pytest.fixture(scope="module")
def document(server):
    status, headers, content = server.ask("GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(content)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["/v1", "/v2", "own"])
def test_it_answers_as_the_document_says(server, document, tmp_path, part):
    # Any name is allowed; those of models lead further.
    asked = json.loads(json.dumps(document))
    for operations in asked["paths"].values():
        for operation in operations.values():
            for one in operation.get("parameters", ()):
                if one["name"] == "model":
                    one["schema"] = {"enum": ["m", "batched", "texts", "ints", "none"]}
                if one["name"] == "version":
                    one["schema"] = {"enum": [1, 1, 7, 2**62]}
    own = ("--include-path-regex", "^/(healthz|readyz|metrics|openapi.json)$")
    chosen = own if part == "own" else ("--include-path-regex", f"^{part}(/|$)")
    (tmp_path / "openapi.json").write_text(json.dumps(asked))
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"),
            *("openapi.json", "--url", f"http://127.0.0.1:{server.rest}", *chosen),
            *("--checks", "all", "--mode", "all", "--seed", "1", "--no-color", "--warnings", "off"),
            # TensorFlow Serving calls another method a malformed request, of status 400.
            *(("--exclude-checks", "unsupported_method") if part == "/v1" else ()),
            *("--max-examples", EXAMPLES, "--generation-database", ":memory:"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_every_reference_leads_somewhere(document):
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert named == set(document["components"]["schemas"])


def _endpoints(page):
    """Those of the tables of a page: method and path, with names in braces."""
    path = Path(__file__).parents[2] / "docs/reference" / page
    found = set()
    for cell in re.findall(r"^\| (`(?:GET|POST) /v[^|]+) \|", path.read_text(), re.M):
        method, first = re.match(r"`(GET|POST) ([^`]+)`", cell).groups()
        ends = [
            first,
            *(re.sub(r"/[^/:]+$|:[^:]+$", "", first) + one for one in re.findall(r"`…([^`]+)`", cell)),
        ]
        ends += re.findall(r"`(?:GET|POST) ([^`]+)`", cell)[1:]
        for end in ends:
            for one in (end.replace("[/versions/V]", ""), end.replace("[/versions/V]", "/versions/V")):
                for which in ("NAME", "NAME/versions/V", "NAME/labels/L"):
                    full = one.replace("WHICH", which)
                    full = full.replace("NAME", "{model}").replace("/V", "/{version}")
                    found.add((method, full.replace("/L", "/{label}")))
    return found


def test_the_pages_of_the_documentation_list_the_same(document):
    said = _endpoints("open-inference-protocol.md") | _endpoints("tensorflow-serving-api.md")
    found = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if path.startswith("/v")
    }
    assert said == found
