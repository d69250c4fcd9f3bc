"""What a server that lies, or somebody between, can do to a client: nothing but refuse."""

import json
import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
from release_stub import BUNDLE, StubServer

from strongroom.attest.evidence import Evidence
from strongroom.crypto.hpke import KEMS
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied, ServerUnavailable, StrongroomError, UntrustedAnswer
from strongroom.format.encoding import b64url, unb64url_text
from strongroom.providers.keyserver.client import Attester, ReleaseClient
from strongroom.providers.keyserver.profile import Profile
from strongroom.providers.keyserver.transport import Transport
from strongroom.release.answer import seal_key, sign
from strongroom.release.binding import WantedKey
from strongroom.release.messages import ReleaseRequest
from strongroom.release.names import KeyName

WANTED = WantedKey(KeyName("m"), BUNDLE)
OTHER = WantedKey(KeyName("n"), BUNDLE)


@pytest.fixture
def connect(stub):
    """Makes clients of the stub."""
    made = []

    def make(attester=None, **changes):
        profile = Profile.parse(stub.profile(**changes), str(stub.directory))
        transport = Transport(profile, attempts=2, sleep=lambda _: None)
        made.append(ReleaseClient(profile, attester, transport=transport))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(connect):
    return connect()


@pytest.fixture
def deks(stub):
    return [stub.add("m"), stub.add("n")]


def test_released(client, stub, deks):
    first, second = client.release([WANTED, OTHER])
    assert [bytes(one.dek.buffer) for one in (first, second)] == deks
    assert (first.version, first.lease.not_after - datetime.now(UTC)) > (0, timedelta(minutes=59))
    assert stub.count("/v1/challenge") == stub.count("/v1/release") == 1


def test_all_or_none(client, stub, deks):
    stub.refuse["n"] = "holders"
    with pytest.raises(ReleaseDenied, match="the key n:") as caught:
        client.release([WANTED, OTHER])
    assert caught.value.code == "holders"


@pytest.mark.parametrize("part", ["payload", "signature"])
def test_unsigned(client, stub, deks, part):
    stub.forge = lambda answer: {name: value for name, value in answer.items() if name != part}
    with pytest.raises(UntrustedAnswer, match="not signed"):
        client.release([WANTED])
    stub.forge = lambda answer: {**answer, part: b64url(bytes(64))}
    with pytest.raises(UntrustedAnswer, match="not signed"):
        client.release([WANTED])


def test_signed_by_another_server(client, connect, stub, deks, tmp_path):
    other = StubServer(tmp_path / "other")
    try:
        stub.forge = lambda answer: sign(json.loads(unb64url_text(answer["payload"])), other.signing)
        with pytest.raises(UntrustedAnswer, match="not signed"):
            client.release([WANTED])
        # The same certificates, and another key pinned.
        stub.forge = lambda answer: answer
        pinned = b64url(other.signing.public_key().public_bytes_raw())
        with pytest.raises(UntrustedAnswer, match="not signed"):
            connect(signing_key=pinned).release([WANTED])
    finally:
        other.stop()


def test_another_server_at_the_address(connect, stub, deks):
    with pytest.raises(UntrustedAnswer, match=r"is the key server TEST-stub, not mine"):
        connect(server_id="mine").release([WANTED])
    assert stub.count("/v1/release") == 0


def test_certificate_of_another_ca(connect, stub, deks, tmp_path):
    other = StubServer(tmp_path / "other")
    other.stop()
    with pytest.raises(UntrustedAnswer, match="does not vouch for"):
        connect(ca=other.ca).release([WANTED])
    assert not stub.asked
    with pytest.raises(UntrustedAnswer, match="does not vouch for"):
        connect(ca=None).release([WANTED])
    stub.stop()
    stub.certify(["keys.example"])
    stub.start()
    with pytest.raises(UntrustedAnswer, match="does not vouch for"):
        connect().release([WANTED])
    assert not stub.asked


@pytest.mark.parametrize(("days", "hint"), [(-800, "renew-certificate"), (800, "clocks")])
def test_certificate_of_another_time(connect, stub, deks, days, hint):
    stub.stop()
    stub.certify(["localhost"], datetime.now(UTC) + timedelta(days=days))
    stub.start()
    with pytest.raises(UntrustedAnswer, match="does not vouch for") as caught:
        connect().release([WANTED])
    assert hint in caught.value.hint
    assert not stub.asked


def test_planted_dek(client, stub, deks):
    """Sealed to the right one-time key by somebody who saw it, under a signature of his own."""

    def forge(answer):
        request = ReleaseRequest.from_json(stub.requests[-1])
        planted = seal_key(
            request.binding(stub.server_id),
            WANTED,
            1,
            stub.new_lease(datetime.now(UTC)),
            SecretBytes(bytes(32)),
        )
        payload = json.loads(unb64url_text(answer["payload"]))
        raw = json.dumps({**payload, "results": [planted]}, sort_keys=True, separators=(",", ":"))
        return {"payload": b64url(raw.encode()), "signature": answer["signature"]}

    stub.forge = forge
    with pytest.raises(UntrustedAnswer, match="not signed"):
        client.release([WANTED])


def test_replayed(client, stub, deks):
    kept = []
    stub.forge = lambda answer: kept.append(answer) or kept[0]
    client.release([WANTED])
    with pytest.raises(UntrustedAnswer, match="another question"):
        client.release([WANTED])
    # With the challenge of now, and the sealed key of then.
    first = json.loads(unb64url_text(kept[0]["payload"]))
    stub.forge = lambda answer: answer
    stub.change = lambda payload: {**payload, "results": first["results"]}
    with pytest.raises(UntrustedAnswer, match="another question"):
        client.release([WANTED])


def results(change):
    return lambda payload: {**payload, "results": change(payload["results"])}


CHANGES = {
    "swapped": results(lambda found: found[::-1]),
    "one missing": results(lambda found: found[:1]),
    "one more": results(lambda found: [*found, found[0]]),
    "none": results(lambda found: []),
    "no list": results(lambda found: {"0": found[0]}),
    "null": results(lambda found: [None, None]),
    "keys exchanged": results(
        lambda found: [
            {**found[0], "encrypted_key": found[1]["encrypted_key"]},
            {**found[1], "encrypted_key": found[0]["encrypted_key"]},
        ]
    ),
    "leases exchanged": results(
        lambda found: [
            {**found[0], "lease": found[1]["lease"]},
            {**found[1], "lease": found[0]["lease"]},
        ]
    ),
    "longer lease": results(
        lambda found: [
            {**one, "lease": {**one["lease"], "not_after": "2099-01-01T00:00:00.000Z"}} for one in found
        ]
    ),
    "other version": results(lambda found: [{**one, "released": 2} for one in found]),
    "version that is true": results(lambda found: [{**one, "released": True} for one in found]),
    "other bundle": results(lambda found: [{**one, "bundle": b64url(bytes(16))} for one in found]),
    "other name": results(lambda found: [{**one, "name": "o"} for one in found]),
    "cut key": results(lambda found: [{**one, "encrypted_key": "AAAA"} for one in found]),
    "no key": results(lambda found: [{**one, "encrypted_key": None} for one in found]),
    "other challenge": lambda payload: {**payload, "challenge": b64url(bytes(32))},
    "other server": lambda payload: {**payload, "server_id": "other"},
    "other protocol": lambda payload: {**payload, "v": 2},
    "no time": lambda payload: {**payload, "time": "yesterday"},
    "time without a zone": lambda payload: {**payload, "time": "2026-01-01T00:00:00"},
}


@pytest.mark.parametrize("name", CHANGES)
def test_signed_and_wrong(client, stub, deks, name):
    """By the real server's key: a faulty server, or one whose answers were mixed up."""
    stub.change = CHANGES[name]
    with pytest.raises(UntrustedAnswer, match="another question") as caught:
        client.release([WANTED, OTHER])
    assert caught.value.__cause__ is None


def test_a_lease_that_is_over(client, stub, deks):
    stub.lease = 0
    with pytest.raises(UntrustedAnswer, match="over already"):
        client.release([WANTED])


@pytest.mark.parametrize(
    "answer",
    [b"", b"null", b"[]", b'"x"', b"<html>", b"{" * 100_000, b'{"a":1,"a":2}', b'{"a":NaN}', b"\xff"],
    ids=lambda value: repr(value[:9]),
)
@pytest.mark.parametrize("path", ["/v1/challenge", "/v1/release"])
def test_garbage(client, stub, deks, answer, path):
    honest = stub._answer
    stub._answer = lambda at, *rest: (200, answer) if at == path else honest(at, *rest)
    with pytest.raises((UntrustedAnswer, ServerUnavailable)):
        client.release([WANTED])


@pytest.mark.parametrize("challenge", ["", b64url(bytes(31)), b64url(bytes(33)), "x", None, 7])
def test_challenges_that_are_none(client, stub, deks, challenge):
    honest = stub._answer

    def answer(path, *rest):
        status, said = honest(path, *rest)
        return status, {**said, "challenge": challenge} if path == "/v1/challenge" else said

    stub._answer = answer
    with pytest.raises(UntrustedAnswer, match="no usable challenge"):
        client.release([WANTED])


def test_answers_are_bounded(client, stub, deks):
    stub._answer = lambda *_: (200, b"x" * (17 << 20))
    with pytest.raises(ServerUnavailable, match="too long"):
        client.release([WANTED])


def test_redirects_are_not_followed(client, stub, deks):
    stub.status, stub.headers = 302, {"Location": "https://localhost:1/v1/challenge"}
    with pytest.raises(StrongroomError):
        client.release([WANTED])
    assert stub.asked == ["/v1/challenge"]


def test_tls_before_1_3_is_refused(connect, stub, deks):
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(stub.pem)
    stub.stop()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            for _ in range(2):
                connection, _ = listener.accept()
                with connection, pytest.raises(ssl.SSLError):
                    context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ServerUnavailable):
            connect(url=f"https://localhost:{listener.getsockname()[1]}").release([WANTED])
        thread.join(60)


def test_a_lost_answer_is_asked_for_anew(client, stub, deks):
    """With another challenge: the first one is used up."""
    honest, lost = stub._answer, []

    def answer(path, body, headers):
        if path == "/v1/release" and not lost:
            lost.append(body["challenge"])
            raise ConnectionError
        return honest(path, body, headers)

    stub._answer = answer
    assert client.release([WANTED])
    assert stub.requests[-1]["challenge"] != lost[0]


class Fake:
    def __init__(self, kind, log):
        self.kind, self.log = kind, log

    def collect(self, bound):
        self.log.append((self.kind, bound))
        return Evidence(self.kind, b"of " + self.kind.encode())


@pytest.mark.parametrize("kind", ["tdx", "tpm"])
def test_what_evidence_is_bound_to(connect, stub, deks, kind):
    log = []
    client = connect(Attester(Fake(kind, log), [Fake("nvidia", log), Fake("nvidia", log)]))
    client.release([WANTED])
    sent = ReleaseRequest.from_json(stub.requests[-1])
    binding = sent.binding(stub.server_id)
    assert [one.kind for one in sent.evidence] == [kind, "nvidia", "nvidia"]
    assert log == [
        ("nvidia", binding.for_secondary()),
        ("nvidia", binding.for_secondary()),
        (kind, binding.for_primary(kind, sent.evidence[1:])),
    ]
    assert len(log[-1][1]) == (32 if kind == "tpm" else 64)


def test_a_key_pair_for_each_request(client, stub, deks):
    client.release([WANTED])
    client.release([WANTED])
    used = [body["recipient"] for body in stub.requests if "recipient" in body]
    assert used[0]["suite"] in KEMS
    assert used[0]["public_key"] != used[1]["public_key"]


class TestRenewal:
    @pytest.fixture
    def leases(self, client, deks):
        return [one.lease.id for one in client.release([WANTED, OTHER])]

    def test_renewed_and_refused(self, client, stub, leases):
        stub.refuse["n"] = "revoked"
        first, second = client.renew(leases).results
        assert first.lease is not None
        assert first.lease.not_after > datetime.now(UTC)
        assert (second.lease, second.code) == (None, "revoked")

    @pytest.mark.parametrize(
        "change",
        [
            lambda payload: {**payload, "nonce": b64url(bytes(32))},
            lambda payload: {**payload, "server_id": "other"},
            lambda payload: {**payload, "v": None},
            lambda payload: {**payload, "results": payload["results"][::-1]},
            lambda payload: {**payload, "results": payload["results"][:1]},
            lambda payload: {**payload, "results": None},
            lambda payload: {**payload, "results": [None, None]},
            lambda payload: {**payload, "time": None},
            lambda payload: {**payload, "results": [{"id": one["id"]} for one in payload["results"]]},
        ],
    )
    def test_wrong(self, client, stub, leases, change):
        stub.change = change
        with pytest.raises(UntrustedAnswer, match="another question"):
            client.renew(leases)

    def test_replayed(self, client, stub, leases):
        kept = []
        stub.forge = lambda answer: kept.append(answer) or kept[0]
        client.renew(leases)
        stub.refuse["m"] = stub.refuse["n"] = "revoked"
        with pytest.raises(UntrustedAnswer, match="another question"):
            client.renew(leases)

    def test_an_answer_to_something_else(self, client, stub, leases):
        """What the server signs for one purpose is no answer to another."""
        signed = stub._release(ReleaseRequest.from_json(stub.requests[-1]))
        stub.forge = lambda _: signed
        with pytest.raises(UntrustedAnswer, match="another question"):
            client.renew(leases)

    def test_end(self, client, stub, leases):
        client.end(leases)
        assert stub.ended == leases
