"""Who may do what: tokens, client certificates, identities without a TEE."""

import json
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet
from servers import Machine, Server, new_pki, registration, text
from starlette.requests import Request

from strongroom.crypto.secret import SecretBytes
from strongroom.keyserver.auth import bearer
from strongroom.keyserver.errors_http import HttpError
from strongroom.pki.certificates import issue, new_ca
from strongroom.release.answer import Refused, Released

NOW = datetime.now(UTC)
ISSUER = "https://login.example.com"


@pytest.fixture(scope="module")
def pki():
    return new_pki()


@pytest.fixture(scope="module")
def issuer_key():
    return ECKey.generate_key("P-256", {"kid": "one", "use": "sig"})


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Client certificates: of administrators, of a machine, of nobody in particular, of another CA."""
    place = tmp_path_factory.mktemp("clients")
    ca, ca_key = new_ca("clients", NOW)
    (place / "ca.pem").write_bytes(ca)
    for name in ("alice", "arthur", "serving", "nobody"):
        (place / name).write_bytes(b"".join(issue(ca, ca_key, name, [], NOW)))
    (place / "expired").write_bytes(
        b"".join(issue(ca, ca_key, "alice", [], NOW - timedelta(days=9), days=8))
    )
    # A certificate of the right CA and name, for servers.
    (place / "server").write_bytes(b"".join(issue(ca, ca_key, "alice", ["alice"], NOW)))
    (place / "stranger").write_bytes(b"".join(issue(*new_ca("clients", NOW), "alice", [], NOW)))
    return place


@pytest.fixture(scope="module")
def server(tmp_path_factory, pki, certificates, issuer_key):
    made = Server.make(tmp_path_factory.mktemp("auth"), pki=pki)
    (made.directory / "jwks.json").write_text(json.dumps(KeySet([issuer_key]).as_dict(private=False)))
    arthur = x509.load_pem_x509_certificate((certificates / "arthur").read_bytes())
    made.configure("tls", client_ca=str(certificates / "ca.pem"))
    made.configure(
        "auth",
        mtls=[
            {"name": "alice", "role": "operator", "subject": "CN=alice"},
            {
                "name": "arthur",
                "role": "auditor",
                "sha256": arthur.fingerprint(hashes.SHA256()).hex(),
            },
        ],
        issuers=[{"kind": "oidc", "issuer": ISSUER, "jwks": "jwks.json"}],
    )
    made.configure("limits", requests_per_second=1e6, burst=1_000_000)
    made.start()
    made.add_key()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def tokens(server):
    return {
        role: server.admin("POST", "/v1/tokens", {"name": role, "role": role})["token"]
        for role in ("auditor", "operator", "owner")
    }


def bodies(server, number):
    """Method and path of every route that administers → a body that an owner may send."""
    key = f"key{number}"
    return {
        ("POST", "/v1/keys"): registration(server.profile, key, SecretBytes.random(32)),
        ("POST", "/v1/keys/rotate"): {"name": key, "version": None},
        ("POST", "/v1/keys/state"): {
            "name": key,
            "version": 1,
            "state": "revoked",
            "reason": "test",
        },
        ("PUT", "/v1/policies"): {
            "policy": {
                "id": key,
                "version": 1,
                "keys": [f"{key}/"],
                "any": [{"kind": "mtls", "subject": "CN=serving"}],
            }
        },
        ("POST", "/v1/policies/approve"): {
            "id": key,
            "version": 1,
            "approver": "ann",
            "signature": text(bytes(64)),
        },
        ("POST", "/v1/nodes/evict"): {"platform": "piid:00", "reason": "test"},
        ("POST", "/v1/nodes/admit"): {"platform": "piid:00"},
        # Of no TPM: what they do with one is elsewhere.
        ("POST", "/v1/nodes/enrol-tpm/begin"): {"evidence": {"kind": "tpm", "data": "e30"}},
        ("POST", "/v1/nodes/enrol-tpm/finish"): {"enrolment": "e30", "answer": text(bytes(32))},
        ("POST", "/v1/tokens"): {"name": key, "role": "auditor"},
        ("DELETE", "/v1/tokens/0000000000000000"): None,
    }


READS = [
    "/v1/keys",
    "/v1/policies",
    "/v1/policies/history?id=nothing",
    "/v1/audit",
    "/v1/audit/head",
    "/v1/nodes",
    "/v1/tokens",
    "/metrics",
]
PUBLIC = {"/healthz", "/readyz", "/v1/server", "/v1/challenge", "/v1/release"} | {
    "/v1/lease/renew",
    "/v1/lease/end",
}


def test_every_route_is_in_one_of_the_lists(server):
    document = server.ask("GET", "/openapi.json").body
    found = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if path not in PUBLIC
    }
    writes = {(method, path.replace("0" * 16, "{id}")) for method, path in bodies(server, 0)}
    reads = {("GET", path.partition("?")[0]) for path in READS}
    assert found == writes | reads


def records(server):
    return server.admin("GET", "/v1/audit?limit=1000")["records"]


def test_an_auditor_reads_everything_and_writes_nothing(server, tokens):
    before = records(server)
    for path in READS:
        answer = server.ask("GET", path, token=tokens["auditor"])
        assert answer.status in (200, 404), path
    for (method, path), body in bodies(server, 1).items():
        answer = server.ask(method, path, body, token=tokens["auditor"])
        assert (answer.status, answer.code) == (403, "not-authorised"), path
    assert records(server) == before


def test_an_auditor_is_refused_before_the_body_is_looked_at(server, tokens):
    for method, path in bodies(server, 2):
        answer = server.ask(method, path, b"{not json", token=tokens["auditor"])
        assert answer.status == 403, path


def test_an_operator_handles_keys_and_nodes_and_no_policies_and_tokens(server, tokens):
    expected = {
        ("POST", "/v1/keys"): 201,
        ("POST", "/v1/keys/rotate"): 200,
        ("POST", "/v1/keys/state"): 200,
        ("PUT", "/v1/policies"): 403,
        ("POST", "/v1/policies/approve"): 404,
        ("POST", "/v1/nodes/evict"): 200,
        ("POST", "/v1/nodes/admit"): 200,
        ("POST", "/v1/nodes/enrol-tpm/begin"): 400,
        ("POST", "/v1/nodes/enrol-tpm/finish"): 400,
        ("POST", "/v1/tokens"): 403,
        ("DELETE", "/v1/tokens/0000000000000000"): 403,
    }
    for (method, path), body in bodies(server, 3).items():
        answer = server.ask(method, path, body, token=tokens["operator"])
        assert answer.status == expected[method, path], (path, answer)
    destroy = {"name": "key3", "version": 1, "state": "destroyed", "reason": "test"}
    assert server.ask("POST", "/v1/keys/state", destroy, token=tokens["operator"]).status == 403
    assert server.ask("POST", "/v1/keys/state", destroy, token=tokens["owner"]).status == 200


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer srt_",
        "Bearer srt_" + "A" * 43,
        "Bearer srt_" + "A" * 9000,
        "Bearer eyJhbGciOiJub25lIn0.e30.",
        "Basic b3duZXI6b3duZXI=",
        "srt_" + "A" * 43,
    ],
)
def test_who_is_not_known_is_refused_everywhere(server, header):
    headers = {} if header is None else {"Authorization": header}
    for path in READS:
        answer = server.ask("GET", path, headers=headers)
        assert (answer.status, answer.code) == (401, "not-authenticated"), path
        assert answer.headers["www-authenticate"] == "Bearer"
    for (method, path), body in bodies(server, 4).items():
        assert server.ask(method, path, body, headers=headers).status == 401, path


def test_a_token_is_good_until_it_is_dropped_or_ends(server):
    end = (datetime.now(UTC) + timedelta(seconds=2)).isoformat()
    short = server.admin("POST", "/v1/tokens", {"name": "a", "role": "auditor", "expires": end})
    made = server.admin("POST", "/v1/tokens", {"name": "b", "role": "auditor"})
    assert server.ask("GET", "/v1/keys", token=made["token"]).status == 200
    server.admin("DELETE", f"/v1/tokens/{made['id']}")
    assert server.ask("GET", "/v1/keys", token=made["token"]).status == 401
    assert server.ask("DELETE", f"/v1/tokens/{made['id']}", token=server.owner).status == 404
    deadline = time.monotonic() + 60
    while server.ask("GET", "/v1/keys", token=short["token"]).status == 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    listed = server.admin("GET", "/v1/tokens")["tokens"]
    assert not any("srt_" in str(one) or made["id"] == one["id"] for one in listed)


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [("alice", 200, 200), ("arthur", 200, 403), ("nobody", 401, 401), ("serving", 401, 401)],
)
def test_client_certificates_have_the_roles_of_the_configuration(
    server, certificates, name, read, write
):
    certificate = certificates / name
    assert server.ask("GET", "/v1/keys", certificate=certificate).status == read
    body = {"platform": "piid:01", "reason": "test"}
    answer = server.ask("POST", "/v1/nodes/evict", body, certificate=certificate)
    assert answer.status == write
    if write == 200:
        assert records(server)[-1]["actor"] == {"name": "alice", "role": "operator", "kind": "mtls"}


@pytest.mark.parametrize("name", ["expired", "server", "stranger"])
def test_certificates_that_tls_does_not_accept(server, certificates, name):
    with pytest.raises((OSError, ValueError)):
        server.ask("GET", "/v1/keys", certificate=certificates / name)
    assert server.ask("GET", "/readyz").status == 200


def test_a_bad_token_is_not_made_up_for_by_a_certificate(server, certificates):
    answer = server.ask("GET", "/v1/keys", token="srt_" + "A" * 43, certificate=certificates / "alice")
    assert answer.status == 401


class Node:
    """A machine without a TEE."""

    def __init__(self, pki):
        self._machine = Machine(pki)
        self._machine.request = self._request

    def _request(self, challenge, wanted):
        request, binding, secret = Machine.request(self._machine, challenge, wanted)
        return (
            type(request)(request.challenge, request.suite, request.public_key, request.keys, ()),
            binding,
            secret,
        )

    def ask(self, server, **options):
        return self._machine.ask(server, **options)


@pytest.fixture(scope="module")
def identity_policy(server):
    server.put_policy(
        any=[
            {"kind": "mtls", "subject": "CN=serving"},
            {"kind": "oidc", "issuer": ISSUER, "subject": "model-server"},
        ]
    )


def token(server, key, **changes):
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "sub": "model-server",
        "aud": server.profile["server_id"],
        "iat": now - 5,
        "exp": now + 300,
        **changes,
    }
    header = {"alg": "ES256", "kid": "one", "typ": "JWT"}
    return jwt.encode(header, claims, key, algorithms=["ES256"])


def test_a_client_certificate_gets_a_key_where_the_policy_says_so(
    server, pki, certificates, identity_policy
):
    (released,) = Node(pki).ask(server, certificate=certificates / "serving")
    assert isinstance(released, Released)
    (refused,) = Node(pki).ask(server, certificate=certificates / "nobody")
    assert isinstance(refused, Refused)
    (refused,) = Node(pki).ask(server)
    assert isinstance(refused, Refused)


def test_a_token_of_an_issuer_gets_a_key_where_the_policy_says_so(
    server, pki, issuer_key, identity_policy
):
    (released,) = Node(pki).ask(server, token=token(server, issuer_key))
    assert isinstance(released, Released)
    (refused,) = Node(pki).ask(server, token=token(server, issuer_key, sub="somebody"))
    assert isinstance(refused, Refused)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "another-server"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"exp": int(time.time()) - 3600},
        {"nbf": int(time.time()) + 3600},
        {"sub": None},
    ],
)
def test_tokens_that_are_not_good_are_refused_and_cost_no_challenge(
    server, pki, issuer_key, identity_policy, changes
):
    made = token(server, issuer_key, **changes)
    answer = server.ask("POST", "/v1/release", b"{", token=made)
    assert (answer.status, answer.code) == (401, "not-authenticated")
    assert made.split(".")[2] not in server.log.read_text()


def test_a_token_of_another_key_and_without_a_signature(server, identity_policy, issuer_key):
    forged = token(server, ECKey.generate_key("P-256", {"kid": "one"}))
    unsigned = "eyJhbGciOiJub25lIn0." + forged.split(".")[1] + "."
    for made in (forged, unsigned, server.owner):
        assert server.ask("POST", "/v1/release", b"{}", token=made).status == 401


@pytest.mark.parametrize(
    ("token", "good"), [(b"a" * (16 << 10), True), (b"a" * ((16 << 10) + 1), False), (b"\xe9", False)]
)
def test_what_no_token_can_be_is_not_looked_up(token, good):
    request = Request({"type": "http", "headers": [(b"authorization", b"Bearer " + token)]})
    if good:
        assert bearer(request) == token.decode()
        return
    with pytest.raises(HttpError) as caught:
        bearer(request)
    assert (caught.value.status, caught.value.code) == (401, "not-authenticated")
