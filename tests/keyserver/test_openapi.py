"""The OpenAPI document says what is so: schemathesis asks the real server what the document allows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from servers import Server, new_pki

EXAMPLES = os.environ.get("STRONGROOM_SCHEMATHESIS_EXAMPLES", "5")
"""For each operation and phase; a longer run sets it higher."""

# What these take says more than a schema can: sealed keys, policies, signatures, moments; and 1.0,
# which is an integer to JSON Schema, is none here.
CONFIG = """
[[operations]]
include-path-regex = "^/v1/(keys|policies|policies/approve|tokens|release|keys/state|keys/rotate|nodes/enrol-tpm/(begin|finish))$"
[operations.checks.positive_data_acceptance]
expected-statuses = [200, 201, 400, 401, 403, 404, 409]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server.make(tmp_path_factory.mktemp("openapi"), pki=new_pki())
    made.configure("limits", requests_per_second=1e6, burst=1_000_000)
    made.start()
    made.add_key()
    made.put_policy()
    yield made
    made.stop()


def schemathesis(server, place, *arguments):
    (place / "schemathesis.toml").write_text(CONFIG)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"),
            f"{server.url}/openapi.json",
            *("--tls-verify", server.directory / "tls/ca.pem"),
            *("--checks", "all", "--mode", "all", "--seed", "1", "--no-color", "--warnings", "off"),
            *("--max-examples", EXAMPLES, "--generation-database", ":memory:", *arguments),
        ],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_administration_answers_as_the_document_says(server, tmp_path):
    header = f"Authorization: Bearer {server.owner}"
    # It finds out the id of its own token, and drops it.
    without = ("--exclude-path", "/v1/release", "--exclude-path", "/v1/tokens/{id}")
    schemathesis(server, tmp_path, "-H", header, *without)
    # Whether it was the owner all the time.
    server.admin("GET", "/v1/keys")


@pytest.mark.slow
def test_strangers_get_answers_as_the_document_says(server, tmp_path):
    schemathesis(server, tmp_path)


def test_nothing_was_a_fault_of_the_server(server):
    assert server.ask("GET", "/readyz").status == 200
    bad = [one for one in server.events() if one["level"] == "error" or one.get("status", 0) >= 500]
    assert bad == []


@pytest.fixture
def document(server):
    return server.ask("GET", "/openapi.json").body


def test_every_operation_names_its_failures(document):
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            statuses = set(operation["responses"])
            assert {"400", "408", "413", "429", "500", "503"} <= statuses, (method, path)
            assert "422" not in statuses
            if method in ("post", "put"):
                assert "requestBody" in operation, path
                assert "415" in statuses, path
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorAnswer"}


def test_every_reference_leads_somewhere(document):
    components = document["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert named <= set(components)
    assert set(components) - named <= {"Problem"}


PAGE = Path(__file__).parents[2] / "docs/reference/keyserver-api.md"


def test_the_page_of_the_documentation_lists_the_same(document):
    rows = re.findall(r"^\| `(GET|POST|PUT|DELETE) ([^`]+)` \| ([^|]+) \|", PAGE.read_text(), re.M)
    said = {(method, path): who.strip() for method, path, who in rows}
    found = {
        (method.upper(), path): operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }
    assert set(said) == set(found) | {("GET", "/openapi.json")}
    for name, operation in found.items():
        restricted = "401" in operation["responses"] and name[1] != "/v1/release"
        assert (said[name] != "anybody") == restricted, name


def test_the_page_lists_every_status(document):
    text = PAGE.read_text()
    statuses = {
        status
        for operations in document["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
        if int(status) >= 400
    }
    assert statuses | {"404", "405"} == set(re.findall(r"^\| (\d{3}) \|", text, re.M))
