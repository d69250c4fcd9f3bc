"""The port for clients of Gramine, attacked over the network: a real server, real TLS, quotes in Intel's format."""

import binascii
import contextlib
import hashlib
import socket
import ssl
import time
from base64 import urlsafe_b64encode
from contextlib import closing
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from gramine_server import (
    BUNDLE,
    DEK,
    LONG_AGO,
    MR_ENCLAVE,
    another_model,
    client,
    fill,
    make,
    new_pki,
    policy,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import strongroom
from strongroom.compat.transfer import export_model
from strongroom.crypto.derive import gramine_wrap_key
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import UsageError
from strongroom.keyserver.config import load_config, parse_config
from strongroom.keyserver.tls_files import renew_certificate
from strongroom.testing.gramine import (
    DICE,
    LEGACY,
    REQUEST,
    RESPONSE,
    certificate,
    claims_about,
    dice_evidence,
    exactly,
    public_der,
)

with gramine_wrap_key(SecretBytes(DEK), BUNDLE) as _key:
    WRAP_KEY = bytes(_key.buffer)
PATIENCE = 60.0
SECOND = "second.example"


@pytest.fixture(scope="module")
def pki():
    return new_pki()


@pytest.fixture(scope="module")
def server(tmp_path_factory, pki):
    made = make(tmp_path_factory.mktemp("gramine"), pki)
    renew_certificate(load_config(made.config), [SECOND])
    fill(made.start())
    yield made
    assert made.stop() == 0
    log = made.log.read_text()
    assert '"fault"' not in log
    assert "Traceback" not in log


@pytest.fixture
def versions(server):
    """Puts policies, and in the end the first one again."""
    count = iter(range(server.admin("GET", "/v1/policies")["policies"][0]["version"] + 1, 10**6))

    def put(**members):
        return server.admin("PUT", "/v1/policies", {"policy": policy(next(count), **members)})

    yield put
    put()


def recorded(server, ask):
    """The record that asking left, and what came of it."""
    head = server.head()
    try:
        secret = ask()
    except OSError:
        secret = b""
    records = server.releases(head)
    assert len(records) <= 1
    return secret, records[0] if records else None


def refusal(server, asking, **options):
    secret, record = recorded(server, lambda: asking.ask(server.door, server.ca, **options))
    assert secret == b""
    assert record is not None
    details = record["details"]
    assert details["door"] == "gramine"
    assert all(one["code"] != "released" for one in details["keys"])
    return details["problem"] or details["keys"][0]["code"]


@pytest.mark.parametrize(
    "release",
    [
        {"dice": False, "tls13": False},  # 1.7
        {},  # 1.8 and 1.9
        {"legacy": False},
        {"dice": False},
    ],
    ids=["1.7", "1.8", "dice", "legacy"],
)
def test_a_client_of_each_release(server, pki, release):
    asking = client(pki, **release)
    secret, record = recorded(server, lambda: asking.ask(server.door, server.ca))
    assert secret == WRAP_KEY
    (key,) = record["details"]["keys"]
    assert (key["name"], key["released"], key["form"]) == ("models/net", 1, "wrap-key")
    assert record["platform"].startswith("ppid:")
    assert record["details"]["evidence"][0]["values"]["mr_enclave"] == MR_ENCLAVE.hex()
    assert record["details"]["name"] == "localhost"
    nodes = server.admin("GET", "/v1/nodes")["nodes"]
    assert [one["leases"] for one in nodes if one["platform"] == record["platform"]] == [1]


def test_the_protocol_byte_for_byte(server, pki):
    with closing(client(pki).connect(server.door, server.ca, host="127.0.0.1")) as connection:
        assert connection.version() == "TLSv1.2"
        name, _, bits = connection.cipher()
        assert name.startswith("ECDHE-")
        assert "GCM" in name or "CHACHA20" in name
        assert bits >= 128
        for byte in b"SECRET_PROVISION_RA_TLS_REQUEST_V1\0":
            connection.sendall(bytes([byte]))
        expected = b"SECRET_PROVISION_RA_TLS_RESPONSE_V1:\0" + b"\0\0\0\x10" + WRAP_KEY
        assert exactly(connection, 57) == expected
        # The server ends when the client does, with its own good-bye.
        connection.unwrap().close()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("wrap-key-hex", binascii.hexlify(WRAP_KEY) + b"\0"),
        ("key", DEK),
        ("text", urlsafe_b64encode(DEK).rstrip(b"=") + b"\0"),
    ],
)
def test_forms(server, pki, versions, form, expected):
    versions(gramine=[{"key": "models/net@1", "form": form}])
    assert client(pki).ask(server.door, server.ca) == expected


def flipped(at):
    def change(value):
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]

    return change


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"parts": {"mr_enclave": b"\x12" * 32}}, "policy"),
        ({"parts": {"debug": True}}, "debug mode"),
        ({"parts": {"debug": True}, "dice": False}, "debug mode"),
        ({"parts": {"qe_svn": 1}}, "below minimum"),
        ({"change_dice": lambda value: value[:-1] + bytes([value[-1] ^ 1])}, "another key"),
        ({"change_dice": lambda value: value + b"\0"}, "behind its end"),
        ({"change_dice": flipped(200)}, "does not verify"),
        ({"change_dice": lambda value: b""}, "DICE"),
        ({"dice": False, "change_legacy": flipped(112)}, "does not verify"),
        ({"dice": False, "change_legacy": lambda value: value + b"x"}, "behind the end"),
        ({"dice": False, "change_legacy": lambda value: value.ljust(8193, b"\0")}, "quote has more"),
        ({"dice": False, "legacy": False}, "no quote"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "none of P-384"),
        ({"key": ec.generate_private_key(ec.SECP521R1())}, "none of P-384"),
        ({"extra": [(LEGACY, b"second")]}, "cannot be read"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_machines_and_certificates_that_are_not_right(server, pki, options, said):
    assert said in refusal(server, client(pki, **options))


def test_a_quote_that_is_about_another_key(server, pki):
    """Seen on another connection, and put into a certificate of one's own."""
    victim, thief = client(pki), client(pki)
    public = public_der(victim.key)
    legacy = victim.quote(hashlib.sha256(public).digest())
    shown = certificate(thief.key, [(LEGACY, legacy)])
    assert refusal(server, thief, shown=shown) == "binding"
    claims = claims_about(public)
    evidence = dice_evidence(victim.quote(hashlib.sha256(claims).digest()), claims)
    shown = certificate(thief.key, [(DICE, evidence), (LEGACY, legacy)])
    assert "another key" in refusal(server, thief, shown=shown)
    # The right claims, beside a quote that is not about them.
    evidence = dice_evidence(legacy, claims_about(public_der(thief.key)))
    assert refusal(server, thief, shown=certificate(thief.key, [(DICE, evidence)])) == "binding"


def test_report_data_with_something_in_the_upper_half(server, pki):
    asking = client(pki, dice=False)
    bound = hashlib.sha256(public_der(asking.key)).digest()
    shown = certificate(asking.key, [(LEGACY, asking.quote(bound + bytes(31) + b"\1"))])
    assert refusal(server, asking, shown=shown) == "binding"


@pytest.mark.parametrize(
    "flags", ["15", "25", "01", "04"], ids=["provision", "launch", "32 bits", "not begun"]
)
def test_enclaves_that_are_not_for_applications(server, pki, flags, monkeypatch):
    from strongroom.testing import intel

    body = intel.sgx_body

    def changed(*arguments, **options):
        attributes = bytes.fromhex(flags) + options["attributes"][1:]
        return body(*arguments, **{**options, "attributes": attributes})

    monkeypatch.setattr(intel, "sgx_body", changed)
    assert "attributes" in refusal(server, client(pki))


def test_what_intel_says_of_the_machine(server, pki):
    issued = pki.now - LONG_AGO
    expired = another_model(server, pki, "50806f000001", issued=issued, crl_issued=issued)
    said = refusal(server, client(expired))
    assert "ended" in said or "expired" in said
    revoked = another_model(server, pki, "50806f000002", revoked=["pck"])
    assert "revoked" in refusal(server, client(revoked))
    outdated = another_model(server, pki, "50806f000003", status="OutOfDate")
    assert refusal(server, client(outdated)) == "policy"
    unknown = replace(pki, fmspc=bytes.fromhex("50806f000006")).another(ppid=bytes(16), piid=b"1" * 16)
    assert "endorsement" in refusal(server, client(unknown)).lower()
    another_root = new_pki()
    assert "verify" in refusal(server, client(another_root))


def no_tls(server, connect):
    """What is refused before there is anybody to speak of: nothing is on record."""
    head = server.head()
    with pytest.raises(OSError), closing(connect()) as connection:
        connection.sendall(REQUEST)
        if exactly(connection, 1):
            pytest.fail("it was answered")
        raise OSError
    assert server.releases(head) == []


def test_handshakes_that_are_refused(server, pki):
    asking = client(pki)
    no_tls(server, lambda: asking.connect(server.door, server.ca, shown=b""))
    # A certificate that has ended, or one larger than any of Gramine.
    ended = client(pki, ends="20200101000000")
    no_tls(server, lambda: ended.connect(server.door, server.ca))
    large = client(pki, extra=[(b"\x2a\x03", bytes(16 << 10))])
    no_tls(server, lambda: large.connect(server.door, server.ca))
    # Neither TLS 1.3 alone, nor a suite without forward secrecy.
    context = asking.context(server.ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    no_tls(server, lambda: wrapped(server, context))
    context = asking.context(server.ca)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA256:@SECLEVEL=0")
    no_tls(server, lambda: wrapped(server, context))


def wrapped(server, context, session=None):
    connection = socket.create_connection(("127.0.0.1", server.door), timeout=PATIENCE)
    try:
        return context.wrap_socket(connection, server_hostname="localhost", session=session)
    except BaseException:
        connection.close()
        raise


def test_a_resumed_session_is_refused(server, pki):
    """It shows a certificate whose key nobody has proved to have, in this connection."""
    context = client(pki, tls13=False).context(server.ca)
    for _ in range(5):
        with closing(wrapped(server, context)) as first:
            session = first.session
            assert not session.has_ticket
            first.sendall(REQUEST)
            assert len(exactly(first, 57)) == 57
            first.unwrap()
        head = server.head()
        with closing(wrapped(server, context, session)) as second:
            resumed = second.session_reused
            second.sendall(REQUEST)
            with contextlib.suppress(ConnectionError):
                assert (exactly(second, 57) == b"") == resumed
        assert (server.releases(head) == []) == resumed
        if resumed:
            break
    assert resumed


def test_a_certificate_that_is_exchanged_on_its_way(server, pki):
    """In TLS 1.2 it is seen in clear; whoever stands between has not its key."""
    victim = client(pki)
    shown = victim.certificate()
    thief = client(pki)
    stand_in = certificate(thief.key, [(LEGACY, bytes(len(shown)))])
    context = thief.context(server.ca, stand_in)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    exchanged = False
    address = ("127.0.0.1", server.door)
    refused = pytest.raises((ssl.SSLError, EOFError))
    with closing(socket.create_connection(address, timeout=PATIENCE)) as connection, refused:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                break
            sent = outgoing.read()
            if stand_in in sent:
                sent, exchanged = with_certificate(sent, shown), True
            connection.sendall(sent)
            received = connection.recv(1 << 16)
            if not received:
                raise EOFError
            incoming.write(received)
    assert exchanged


def with_certificate(flight, shown):
    """The flight of a client, with another certificate as its first message."""
    size = int.from_bytes(flight[3:5], "big")
    assert (flight[0], flight[5]) == (22, 11)
    message = 4 + int.from_bytes(flight[6:9], "big")
    listed = len(shown).to_bytes(3, "big") + shown
    body = len(listed).to_bytes(3, "big") + listed
    handshake = b"\x0b" + len(body).to_bytes(3, "big") + body + flight[5 + message : 5 + size]
    return flight[:3] + len(handshake).to_bytes(2, "big") + handshake + flight[5 + size :]


@pytest.mark.parametrize(
    "request_",
    [
        b"SECRET_PROVISION_RA_TLS_REQUEST_V2\0",
        REQUEST[:-1] + b"\n",
        REQUEST + b"\0",
        REQUEST * 2,
        b"GET / HTTP/1.1\r\n\r\n",
        RESPONSE,
    ],
)
def test_other_requests(server, pki, request_):
    def ask():
        with closing(client(pki).connect(server.door, server.ca)) as connection:
            connection.sendall(request_)
            return exactly(connection, 1)

    assert recorded(server, ask) == (b"", None)


def test_a_protocol_of_the_application_is_not_begun(server, pki):
    with closing(client(pki).connect(server.door, server.ca)) as connection:
        connection.sendall(REQUEST)
        assert len(exactly(connection, 57)) == 57
        connection.sendall(b"MORE\0")
        assert connection.recv(100) == b""


@pytest.mark.parametrize(
    "junk",
    [
        b"\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
        b"\x16\x03\x01\x40\x01" + bytes(1 << 14),
        b"\x15\x03\x03\x00\x02\x02\x28",
        b"\x14\x03\x03\x00\x01\x01" * 100,
        bytes(range(256)) * 400,
    ],
    ids=range(7),
)
def test_junk(server, junk):
    with closing(socket.create_connection(("127.0.0.1", server.door))) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
        ended(connection)


def test_a_client_that_does_not_wait(server, pki):
    """Its release is decided and on record, and whoever comes next is answered by the same worker."""
    head = server.head()
    connection = client(pki).connect(server.door, server.ca)
    connection.sendall(REQUEST)
    connection.close()
    assert client(pki).ask(server.door, server.ca) == WRAP_KEY
    deadline = time.monotonic() + PATIENCE
    while len(server.releases(head)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_which_key_by_the_name_that_is_asked_for(server, pki, versions):
    other = server.add_key("models/other", bytes(32), bytes(16))
    versions(
        keys=["models/"],
        gramine=[
            {"key": "models/net", "form": "key", "names": ["localhost"]},
            {"key": "models/other", "form": "key", "names": [SECOND]},
        ],
    )
    asking = client(pki)
    assert asking.ask(server.door, server.ca) == DEK
    assert asking.ask(server.door, server.ca, host=SECOND) == bytes(other.buffer)
    versions(keys=["models/"], gramine=[{"key": "models/net", "form": "key", "names": ["elsewhere"]}])
    assert "No policy" in refusal(server, asking)
    versions(keys=["models/"], gramine=[{"key": "models/none", "form": "key"}])
    assert refusal(server, asking) == "unknown-key"


def test_what_two_policies_would_give_neither_gives(server, pki):
    second = policy(1, id="second", keys=["second/net"])
    server.add_key("second/net", bytes(range(32)), bytes(range(1, 17)))
    server.admin("PUT", "/v1/policies", {"policy": second})
    secret, record = recorded(server, lambda: client(pki).ask(server.door, server.ca))
    assert secret == b""
    assert [one["code"] for one in record["details"]["keys"]] == ["ambiguous", "ambiguous"]
    # One that would refuse this machine is no second one.
    second |= {"version": 2, "any": [{"kind": "sgx", "mr_enclave": "ab" * 32}]}
    server.admin("PUT", "/v1/policies", {"policy": second})
    secret, record = recorded(server, lambda: client(pki).ask(server.door, server.ca))
    assert secret == WRAP_KEY
    assert sorted(one["code"] for one in record["details"]["keys"]) == ["policy", "released"]
    server.admin("PUT", "/v1/policies", {"policy": second | {"version": 3, "shadow": True}})


STATE = {"name": "models/net", "version": 1, "reason": "test"}


def test_policies_leases_and_states_are_those_of_every_door(server, pki, versions):
    asking = client(pki)
    versions(any=[{"kind": "sgx", "mr_enclave": "ab" * 32}])
    assert refusal(server, asking) == "policy"
    versions(not_after="2020-01-01T00:00:00Z")
    assert refusal(server, asking) == "expired"
    versions(test_roots=False)
    assert refusal(server, asking) == "evidence"
    versions(lease={"seconds": 3600, "max_holders": 1})
    assert asking.ask(server.door, server.ca) == WRAP_KEY
    another = pki.another(ppid=b"\x77" * 16, piid=b"\x78" * 16)
    assert refusal(server, client(another)) == "holders"
    versions()
    assert client(another).ask(server.door, server.ca) == WRAP_KEY
    server.admin("POST", "/v1/nodes/evict", {"platform": "ppid:" + "77" * 16, "reason": "test"})
    assert refusal(server, client(another)) == "evicted"
    server.admin("POST", "/v1/keys/state", STATE | {"state": "revoked"})
    assert refusal(server, asking) == "revoked"
    server.admin("POST", "/v1/keys/state", STATE | {"state": "active"})
    assert asking.ask(server.door, server.ca) == WRAP_KEY


def test_changed_quotes_and_claims_give_nothing(server, pki):
    """Whatever is signed or bound is changed, in a certificate that is signed anew."""
    asking = client(pki)
    claims = claims_about(public_der(asking.key))
    quote = asking.quote(hashlib.sha256(claims).digest())
    evidence = dice_evidence(quote, claims)
    begin = evidence.index(quote)
    # The padding of the header aside, all is signed up to the signature, and the envelope is bound.
    places = [*range(begin + 432 + 68), *range(begin + len(quote), len(evidence))]

    @given(st.sampled_from(places), st.integers(1, 255), st.booleans())
    @settings(max_examples=25, deadline=None)
    def change(at, by, with_legacy):
        changed = evidence[:at] + bytes([evidence[at] ^ by]) + evidence[at + 1 :]
        extensions = [(DICE, changed)]
        if with_legacy:
            bound = hashlib.sha256(public_der(asking.key)).digest()
            extensions.append((LEGACY, asking.quote(bound)))
        assert refusal(server, asking, shown=certificate(asking.key, extensions))

    change()
    assert asking.ask(server.door, server.ca) == WRAP_KEY


def test_nothing_secret_is_in_the_log_or_the_audit_trail(server, pki):
    assert client(pki).ask(server.door, server.ca) == WRAP_KEY
    said = server.log.read_bytes() + str(server.releases()).encode()
    said += b"".join(one.read_bytes() for one in server.directory.glob("keyserver.db*"))
    for secret in (DEK, WRAP_KEY):
        for spelling in (secret, binascii.hexlify(secret), urlsafe_b64encode(secret)[:20]):
            assert spelling not in said


def test_numbers(server, pki):
    client(pki).ask(server.door, server.ca)
    text = server.ask("GET", "/metrics", token=server.owner).content.decode()
    assert 'strongroom_releases_total{kind="sgx",outcome="released"}' in text
    assert 'strongroom_verify_seconds_count{kind="sgx"}' in text


def test_a_renewed_certificate_is_shown(server, pki):
    def shown():
        with closing(client(pki).connect(server.door, server.ca)) as connection:
            return connection.getpeercert(True)

    before = shown()
    renew_certificate(load_config(server.config), [])
    server.process.send_signal(1)
    deadline = time.monotonic() + PATIENCE
    while shown() == before:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # A pair that does not fit is not taken, by either port.
    (server.directory / "tls" / "server.key").write_bytes(
        (server.directory / "tls" / "ca.key").read_bytes()
    )
    server.process.send_signal(1)
    while not any("certificate not read" in one["event"] for one in server.events()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert client(pki).ask(server.door, server.ca) == WRAP_KEY


def test_connections_of_one_address_are_counted(server, pki):
    """Apart from those of the other port, with the same limit."""
    with contextlib.ExitStack() as stack:
        for _ in range(257):
            connection = socket.create_connection(("127.0.0.1", server.door))
            stack.enter_context(closing(connection))
        ended(connection)
        assert server.ask("GET", "/readyz").status == 200


@pytest.fixture(scope="module")
def patient(tmp_path_factory, pki):
    """A server that waits five seconds for anybody, not less: it has to suffice on a machine that is busy."""
    limits = {"head_seconds": 5.0, "answer_seconds": 5.0, "connections_per_address": 1200}
    made = make(tmp_path_factory.mktemp("patient"), pki, **limits)
    made.configure("listen", workers=2)
    renew_certificate(load_config(made.config), [SECOND])
    fill(made.start())
    yield made
    # With connections that are open.
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", made.door))))
        assert made.stop() == 0


def ended(connection):
    """The server closes, or cuts, the connection."""
    connection.settimeout(PATIENCE)
    with contextlib.suppress(ConnectionError):
        while connection.recv(1000):
            pass


def test_a_thousand_that_are_slow_keep_nobody_out(patient, pki):
    """Of either port; each phase has its end."""
    address = ("127.0.0.1", patient.door)
    with contextlib.ExitStack() as stack:

        def opened(connection):
            return stack.enter_context(closing(connection))

        slow = [opened(socket.create_connection(address)) for _ in range(1000)]
        slow[0].sendall(b"\x16\x03\x01\x02\x00\x01")
        slow.append(opened(client(pki).connect(patient.door, patient.ca)))
        slow.append(opened(client(pki).connect(patient.door, patient.ca)))
        slow[-1].sendall(REQUEST[:-1])
        slow.append(opened(client(pki).connect(patient.door, patient.ca)))
        slow[-1].sendall(REQUEST)
        assert exactly(slow[-1], 57).endswith(WRAP_KEY)
        assert client(pki).ask(patient.door, patient.ca) == WRAP_KEY
        assert patient.ask("GET", "/readyz").status == 200
        for one in slow:
            ended(one)
    assert client(pki).ask(patient.door, patient.ca) == WRAP_KEY


def test_sealed_files_open_with_what_gramine_gets(patient, pki, tmp_path):
    """From a model to files of Gramine, and from its key server the key that opens them."""
    (tmp_path / "net.onnx").write_bytes(b"weights" * 5000)
    strongroom.seal(tmp_path / "net.onnx", tmp_path / "net.sealed", key=bytes(32))
    with strongroom.open(tmp_path / "net.sealed", key=bytes(32)) as model:
        export_model(model, tmp_path / "enc", "gramine", "model:", {"path": "models/net.onnx"})
        dek, bundle = bytes(model._keys.dek.buffer), model.bundle
    patient.add_key("exported/net", dek, bundle)
    names = [{"key": "exported/net", "form": "wrap-key", "names": [SECOND]}]
    second = policy(1, id="exported", keys=["exported/net"], gramine=names)
    patient.admin("PUT", "/v1/policies", {"policy": second})
    first = [{"key": "models/net", "form": "wrap-key", "names": ["localhost"]}]
    patient.admin("PUT", "/v1/policies", {"policy": policy(2, gramine=first)})
    wrap_key = client(pki).ask(patient.door, patient.ca, host=SECOND)
    strongroom.import_model(
        tmp_path / "enc",
        tmp_path / "again.sealed",
        format="gramine",
        source_key=wrap_key,
        options={"path": "models/net.onnx"},
        key=bytes(32),
    )
    with strongroom.open(tmp_path / "again.sealed", key=bytes(32)) as model:
        assert model.read() == b"weights" * 5000
    with pytest.raises(strongroom.errors.StrongroomError):
        strongroom.import_model(
            tmp_path / "enc",
            tmp_path / "never.sealed",
            format="gramine",
            source_key=WRAP_KEY,
            key=bytes(32),
        )


def test_a_revocation_list_that_is_older_than_one_seen_before(patient, pki):
    newer = another_model(patient, pki, "50806f000004", crl_number=2)
    assert client(newer).ask(patient.door, patient.ca) == WRAP_KEY
    older = another_model(patient, pki, "50806f000005", crl_number=1)
    assert refusal(patient, client(older)) == "evidence"


def test_the_port_is_closed_unless_it_is_configured(tmp_path):
    document = {
        "server_id": "keys.example",
        "tls": {"certificate": "a", "key": "b"},
        "database": {},
        "kek": {"source": "file:root.kek"},
    }
    assert parse_config(document, tmp_path).gramine is None
    asked = parse_config(document | {"gramine": {}}, tmp_path).gramine
    assert (asked.port, asked.host) == (4433, None)
    for wrong in ({"port": 65536}, {"port": -1}, {"port": "4433"}, {"ports": 4433}):
        with pytest.raises(UsageError, match=r"gramine\.port"):
            parse_config(document | {"gramine": wrong}, tmp_path)
