"""Issuers of tokens take new keys while the server runs: identities, and passports that workers verify."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from servers import Server

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.cli.process import run
from strongroom.errors import NotAuthentic, NotFound, UsageError
from strongroom.format.encoding import b64url
from strongroom.keyserver.settings import IdentityIssuer
from strongroom.keyserver.settings import TokenIssuer as Configured
from strongroom.keyserver.trust import issuers_of, key_set_specs
from strongroom.keyserver.verification import VerificationPool
from strongroom.testing.tokens import TokenIssuer

NAME = "https://login.example.com"
NONCE = hashlib.sha256(b"nonce").hexdigest()


def now():
    # When asked for: other tests of this process may have taken longer than a token lives.
    return datetime.now(UTC).replace(microsecond=0)


def issuers(audience):
    return [TokenIssuer(NAME, now(), audience, kid) for kid in ("one", "two")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    made = Server.make(tmp_path_factory.mktemp("rotated"))
    (made.directory / "jwks.json").write_bytes(issuers("")[0].jwks)
    issuer = {"kind": "oidc", "issuer": NAME, "jwks": "jwks.json", "algorithms": ["ES384"]}
    made.configure("auth", issuers=[issuer])
    made.configure("limits", requests_per_second=1e6, burst=1_000_000)
    made.start()
    yield made
    made.stop()


def status(server, issuer):
    """401 for a token that is not good; whoever has a good one hears that this is no request."""
    token = issuer.token({"sub": "model-server"}).decode()
    return server.ask("POST", "/v1/release", {}, token=token).status


def test_a_running_server_follows_the_file_of_an_identity_provider(server):
    old, new = issuers(str(server.profile["server_id"]))
    path = server.directory / "jwks.json"
    path.write_bytes(old.jwks)
    assert (status(server, old), status(server, new)) == (400, 401)
    path.write_bytes(json.dumps({"keys": [old.jwk(), new.jwk()]}).encode())
    assert (status(server, old), status(server, new)) == (400, 400)
    path.write_bytes(new.jwks)
    assert (status(server, old), status(server, new)) == (401, 400)
    path.write_bytes(b"half of a ke")
    assert (status(server, old), status(server, new)) == (401, 400)
    path.unlink()
    assert (status(server, old), status(server, new)) == (401, 400)


def test_workers_follow_the_file_of_an_attestation_service(tmp_path):
    old, new = issuers("test-server")
    path = tmp_path / "jwks.json"
    path.write_bytes(old.jwks)
    configured = [Configured(NAME, "test-server", jwks=path, algorithms=["ES384"])]
    roots = replace(production(), issuers=issuers_of(configured))

    def passport(issuer):
        return [Evidence("jwt", issuer.token({"eat_nonce": NONCE}))]

    async def use():
        pool = VerificationPool(roots, key_set_specs(configured), workers=1, timeout=60)
        await pool.start()
        try:
            await pool.verify(passport(old), now())
            with pytest.raises(NotAuthentic, match="no such key"):
                await pool.verify(passport(new), now())
            path.write_bytes(new.jwks)
            await pool.verify(passport(new), now())
            with pytest.raises(NotAuthentic, match="no such key"):
                await pool.verify(passport(old), now())
        finally:
            pool.close()

    asyncio.run(use())


def test_a_policy_is_tried_with_the_key_sets_of_a_configuration(tmp_path, capsys):
    issuer = TokenIssuer(NAME, now())
    (tmp_path / "jwks.json").write_bytes(issuer.jwks)
    (tmp_path / "keyserver.toml").write_text(
        'server_id = "test-server"\ntls = {certificate = "c", key = "k"}\n'
        'database = {url = "sqlite:///x.db"}\nkek = {source = "file:x"}\n'
        "[[attestation.issuers]]\n"
        f'issuer = "{NAME}"\naudience = "test-server"\njwks = "jwks.json"\n'
    )
    policy = {
        "id": "p",
        "version": 1,
        "keys": ["m"],
        "any": [{"kind": "jwt", "issuer": NAME, "claims": {"hw": "yes"}}],
    }
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    token = issuer.token({"eat_nonce": NONCE, "hw": "yes"})
    (tmp_path / "evidence.json").write_text(json.dumps({"kind": "jwt", "data": b64url(token)}))
    words = ["policy", "test", str(tmp_path / "policy.json")]
    words += ["--evidence", str(tmp_path / "evidence.json")]
    assert run([*words, "--config", str(tmp_path / "keyserver.toml")]) == 0, capsys.readouterr()
    assert run(words) == 6


# What a configuration says


def test_files_become_sources(tmp_path: Path):
    path = tmp_path / "a=b.json"
    path.write_bytes(issuers("")[0].jwks)
    found = key_set_specs(
        [
            IdentityIssuer("oidc", "https://a.example/x=y", path),
            IdentityIssuer("kubernetes", "https://a.example/x=y", path),
            IdentityIssuer("oidc", "https://b.example"),
        ]
    )
    assert found == [f"jwks-file:https%3A%2F%2Fa.example%2Fx%3Dy={path}"]


def test_a_server_does_not_start_without_its_key_sets(tmp_path):
    with pytest.raises(NotFound):
        key_set_specs([IdentityIssuer("oidc", NAME, tmp_path / "none")])
    (tmp_path / "none").write_text("{}")
    with pytest.raises(UsageError, match="no set of keys"):
        key_set_specs([IdentityIssuer("oidc", NAME, tmp_path / "none")])


def test_an_issuer_has_one_key_set(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(issuers("")[0].jwks)
    several = [IdentityIssuer("oidc", NAME, tmp_path / name) for name in ("one", "two")]
    with pytest.raises(UsageError, match="several files"):
        key_set_specs(several)
