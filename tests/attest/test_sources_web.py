from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from nvidia_cases import AT, DRIVER_ID, VBIOS_ID, evidence_of, manifests, recorded
from recorded import fixed_time, read
from web_server import Reply, Server, serving, tls_names

from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Issuer, production
from strongroom.attest.sources import (
    AmdKds,
    DirectorySource,
    HttpSource,
    IntelPcs,
    IssuerKeys,
    NvidiaServices,
    endorsement_source,
)
from strongroom.attest.sources.naming import path_of
from strongroom.attest.sources.web import Web
from strongroom.attest.verify import Context, verify
from strongroom.errors import MissingEndorsement, Unavailable
from strongroom.testing.authority import Authority
from strongroom.testing.tokens import TokenIssuer

DRIVER = Wanted("nvidia-rim", {"id": DRIVER_ID})
TDX = Wanted("intel", {"tee": "tdx", "fmspc": "B0C06F000000", "ca": "platform"})
NOW = datetime.now(UTC)


@pytest.fixture
def server():
    with serving() as one:
        yield one


# An untrusted proxy.


def test_a_proxy(server: Server) -> None:
    for wanted in (DRIVER, TDX, Wanted("nvidia-ocsp", {"request": "00" * 300})):
        server.replies["/base/" + path_of(wanted)] = Reply(path_of(wanted).encode())
        assert HttpSource(server.url + "/base/").fetch(wanted) == path_of(wanted).encode()
    with pytest.raises(MissingEndorsement):
        HttpSource(server.url).fetch(DRIVER)


def test_a_directory_behind_any_web_server_is_a_proxy(server: Server, tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    for name, data in zip((DRIVER_ID, VBIOS_ID), manifests(), strict=True):
        source.store(Wanted("nvidia-rim", {"id": name}), data)
    for path in tmp_path.rglob("*.xml"):
        server.replies[f"/{path.relative_to(tmp_path)}"] = Reply(path.read_bytes())
    found = endorsement_source([f"proxy:{server.url}"], clock=lambda: AT)
    for _ in range(3):
        claims = verify(evidence_of(recorded()), Context(AT, production(), found))
        assert claims.values["devices"][0]["measurements"] == "match"
    assert server.asked.count(f"/nvidia-rim/{DRIVER_ID}.xml") == 1


@pytest.mark.parametrize("status", [301, 302, 307, 401, 403, 429, 500, 503, 204, 206])
def test_other_statuses_are_no_answer(server: Server, status: int) -> None:
    server.replies["/elsewhere"] = Reply(b"elsewhere")
    server.replies["/" + path_of(DRIVER)] = Reply(
        b"" if status == 204 else b"x", status, {"Location": server.url + "/elsewhere"}
    )
    with pytest.raises(Unavailable):
        HttpSource(server.url).fetch(DRIVER)
    assert "/elsewhere" not in server.asked


def raw(data: bytes, pause: float = 0.0, times: int = 1):
    def send(handler) -> None:
        try:
            for _ in range(times):
                handler.wfile.write(data)
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass
        handler.close_connection = True

    return Reply(send=send)


@pytest.mark.parametrize(
    "reply",
    [
        raw(b""),
        raw(b"rubbish\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70000 + b"\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n" + bytes((1 << 20) + 1)),
        raw(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + bytes(65536) + b"\r\n",
            0,
            1,
        ),
    ],
)
def test_answers_that_are_none(server: Server, reply: Reply) -> None:
    server.replies["/" + path_of(DRIVER)] = reply
    with pytest.raises(Unavailable):
        HttpSource(server.url, Web(timeout=2)).fetch(DRIVER)


def test_an_answer_without_length_ends_with_the_connection(server: Server) -> None:
    server.replies["/" + path_of(DRIVER)] = raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc")
    assert HttpSource(server.url).fetch(DRIVER) == b"abc"


@pytest.mark.parametrize(
    "reply",
    [
        raw(b"", 30),
        raw(b"H", 0.05, 400),
        raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n", 0.05, 400),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"a", 0.05, 400),
    ],
)
def test_a_slow_server_is_left(server: Server, reply: Reply) -> None:
    """A byte now and then would keep a socket's own timeout from ever ending."""
    server.replies["/" + path_of(DRIVER)] = reply
    begin = time.monotonic()
    with pytest.raises(Unavailable):
        HttpSource(server.url, Web(timeout=0.3)).fetch(DRIVER)
    assert time.monotonic() - begin < 15


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        HttpSource("http://127.0.0.1:1").fetch(DRIVER)


# Intel.


def pcs(server: Server, name: str = "tdx_B0C06F000000") -> dict[str, str]:
    """Intel's five answers, as its service sends what was recorded."""
    found = json.loads(read(f"dcap/collateral/{name}.json"))
    tee, fmspc = name.split("_")
    ca = "platform" if "Platform" in found["pck_crl_issuer_chain"] or tee == "tdx" else "processor"

    def chain(name: str) -> str:
        return quote(found[name])

    server.replies |= {
        f"/{tee}/certification/v4/tcb?fmspc={fmspc}": Reply(
            b'{"tcbInfo":%s,"signature":"%s"}'
            % (found["tcb_info"].encode(), found["tcb_info_signature"].encode()),
            headers={"TCB-Info-Issuer-Chain": chain("tcb_info_issuer_chain")},
        ),
        f"/{tee}/certification/v4/qe/identity": Reply(
            b'{"enclaveIdentity":%s,"signature":"%s"}'
            % (found["qe_identity"].encode(), found["qe_identity_signature"].encode()),
            headers={"SGX-Enclave-Identity-Issuer-Chain": chain("qe_identity_issuer_chain")},
        ),
        f"/sgx/certification/v4/pckcrl?ca={ca}&encoding=der": Reply(
            bytes.fromhex(found["pck_crl"]),
            headers={"SGX-PCK-CRL-Issuer-Chain": chain("pck_crl_issuer_chain")},
        ),
        "/IntelSGXRootCA.der": Reply(bytes.fromhex(found["root_ca_crl"])),
    }
    return found


def intel(server: Server) -> IntelPcs:
    return IntelPcs(server.url, server.url + "/IntelSGXRootCA.der")


@pytest.mark.parametrize(
    ("name", "ca", "quote_file"),
    [
        ("tdx_B0C06F000000", "platform", "dcap/tdx_v4.bin"),
        ("sgx_00A067110000", "processor", "dcap/sgx_v3.bin"),
    ],
)
def test_intels_service(server: Server, name: str, ca: str, quote_file: str) -> None:
    expected = pcs(server, name)
    tee, fmspc = name.split("_")
    data = intel(server).fetch(Wanted("intel", {"tee": tee, "fmspc": fmspc, "ca": ca}))
    assert json.loads(data) == expected
    source = endorsement_source([f"vendor:intel={server.url}"])
    claims = verify(
        Evidence(tee, read(quote_file)), Context(fixed_time(quote_file), production(), source)
    )
    assert claims.values["fmspc"] == fmspc.lower()


def test_intels_statement_is_passed_on_byte_for_byte(server: Server) -> None:
    """A parser that writes it anew, with other white space or order, breaks the signature."""
    pcs(server)
    path = "/tdx/certification/v4/tcb?fmspc=B0C06F000000"
    odd = b'{ "z" : 1 ,  "a":[1,  2],"t":"\\u00e9,\\"signature\\":\\"" }'
    server.replies[path].body = b'{"tcbInfo":%s,"signature":"00ff"}' % odd
    found = json.loads(intel(server).fetch(TDX))
    assert found["tcb_info"].encode() == odd
    assert found["tcb_info_signature"] == "00ff"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"tcbInfo":{}}',
        b'{"tcbInfo":{},"signature":7}',
        b'{"tcbInfo":{},"signature":"xyz"}',
        b'{"tcbInfo":[],"signature":"00"}',
        b'{"signature":"00","tcbInfo":{}}',
        b'{"other":1,"tcbInfo":{},"signature":"00"}',
        b'{"tcbInfo":{"a":1,"a":2},"signature":"00"}',
        b"\xff",
    ],
)
def test_intels_service_in_another_form(server: Server, body: bytes) -> None:
    pcs(server)
    server.replies["/tdx/certification/v4/tcb?fmspc=B0C06F000000"].body = body
    with pytest.raises(Unavailable):
        intel(server).fetch(TDX)


def test_intels_service_without_a_chain_or_a_part(server: Server) -> None:
    pcs(server)
    crl = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
    server.replies[crl].headers.clear()
    with pytest.raises(Unavailable, match="certificates"):
        intel(server).fetch(TDX)
    for path in list(server.replies):
        pcs(server)
        del server.replies[path]
        with pytest.raises(MissingEndorsement):
            intel(server).fetch(TDX)


@pytest.mark.parametrize(
    "members",
    [
        {"tee": "sev", "fmspc": "B0C06F000000", "ca": "platform"},
        {"tee": "tdx", "fmspc": "B0C0", "ca": "platform"},
        {"tee": "tdx", "fmspc": "B0C06F000000", "ca": "root&x=y"},
    ],
)
def test_intel_is_asked_nothing_odd(server: Server, members: dict[str, str]) -> None:
    with pytest.raises(MissingEndorsement):
        intel(server).fetch(Wanted("intel", members))
    assert not server.asked


# AMD.


def test_amds_service(server: Server) -> None:
    source = AmdKds(server.url)
    levels = {"bl": "3", "tee": "0", "snp": "20", "ucode": "209"}
    hwid = "ab" * 64
    server.replies |= {
        f"/vcek/v1/Milan/{hwid}?blSPL=3&teeSPL=0&snpSPL=20&ucodeSPL=209": Reply(b"vcek"),
        f"/vcek/v1/Turin/{hwid[:16]}?fmcSPL=1&blSPL=3&teeSPL=0&snpSPL=20&ucodeSPL=209": Reply(b"turin"),
        "/vlek/v1/Milan/cert_chain": Reply(b"chain"),
        "/vcek/v1/Genoa/crl": Reply(b"crl"),
    }

    def fetch(what: str, **members: str) -> bytes:
        return source.fetch(Wanted(what, members))

    assert fetch("amd-vcek", product="Milan", hwid=hwid, **levels) == b"vcek"
    assert fetch("amd-vcek", product="Turin", hwid=hwid[:16], fmc="1", **levels) == b"turin"
    assert fetch("amd-chain", product="Milan", signer="vlek") == b"chain"
    assert fetch("amd-crl", product="Genoa", signer="vcek") == b"crl"
    with pytest.raises(MissingEndorsement):
        fetch("amd-crl", product="Milan", signer="vcek")
    count = len(server.asked)
    for bad in ("Milan/../x", "Milan?", "", "a b"):
        with pytest.raises(MissingEndorsement):
            fetch("amd-crl", product=bad, signer="vcek")
    assert len(server.asked) == count
    server.replies["/vcek/v1/Genoa/crl"] = Reply(status=429)
    with pytest.raises(Unavailable):
        fetch("amd-crl", product="Genoa", signer="vcek")


# NVIDIA.


def rim_reply(data: bytes) -> Reply:
    return Reply(json.dumps({"id": "x", "rim": base64.b64encode(data).decode()}).encode())


def test_nvidias_services(server: Server) -> None:
    for name, data in zip((DRIVER_ID, VBIOS_ID), manifests(), strict=True):
        server.replies[f"/v1/rim/{name}"] = rim_reply(data)
    source = endorsement_source([f"vendor:nvidia={server.url}"], clock=lambda: AT)
    claims = verify(evidence_of(recorded()), Context(AT, production(), source))
    assert claims.values["devices"][0]["measurements"] == "match"
    # Asked for by a POST, and not known there.
    assert server.bodies
    assert all(body.startswith(b"\x30") for body in server.bodies)


def test_nvidias_responder(server: Server) -> None:
    from strongroom.attest.certificates import load_certificates
    from strongroom.attest.nvidia_ocsp import ocsp_request

    server.replies["/ocsp"] = Reply(read("nvidia/h100_l4.ocsp"))
    _, chip, issuer, *_ = load_certificates(read("nvidia/h100.pem"))
    source = NvidiaServices(server.url, server.url + "/ocsp")
    wanted = Wanted("nvidia-ocsp", {"request": ocsp_request(chip, issuer).hex()})
    assert source.fetch(wanted) == read("nvidia/h100_l4.ocsp")
    assert server.bodies == [ocsp_request(chip, issuer)]
    with pytest.raises(MissingEndorsement):
        NvidiaServices(server.url, None).fetch(wanted)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"rim":7}', b'{"rim":"!"}', b"[]"])
def test_nvidias_service_in_another_form(server: Server, body: bytes) -> None:
    server.replies[f"/v1/rim/{DRIVER_ID}"] = Reply(body)
    with pytest.raises(Unavailable):
        NvidiaServices(server.url, None).fetch(DRIVER)


def test_vendors_are_asked_only_for_what_is_theirs(server: Server) -> None:
    for source in (intel(server), AmdKds(server.url), NvidiaServices(server.url), IssuerKeys({})):
        for wanted in (
            TDX,
            DRIVER,
            Wanted("amd-crl", {"product": "Milan", "signer": "vcek"}),
            Wanted("jwks", {"issuer": "https://issuer.example"}),
        ):
            own = {"IntelPcs": TDX, "NvidiaServices": DRIVER}.get(type(source).__name__)
            if wanted is own or (isinstance(source, AmdKds) and wanted.what.startswith("amd")):
                continue
            with pytest.raises(MissingEndorsement):
                source.fetch(wanted)
    assert not server.asked


# Issuers.


@pytest.fixture
def tls(tmp_path: Path):
    since, until = NOW - timedelta(days=1), NOW + timedelta(days=1)
    root = Authority.make("web root", since, until)
    leaf = Authority.make("127.0.0.1", since, until, root, ca=False, extensions=tls_names())
    with serving(leaf, tmp_path) as one:
        yield one, root.pem


def test_key_sets_by_discovery(tls) -> None:
    server, ca = tls
    issuer = TokenIssuer(server.url + "/tenant", NOW)
    server.replies |= {
        "/tenant/.well-known/openid-configuration": Reply(
            json.dumps({"issuer": issuer.issuer, "jwks_uri": server.url + "/keys"}).encode()
        ),
        "/keys": Reply(issuer.jwks),
    }
    source = endorsement_source([f"jwks:{issuer.issuer}"], ca=ca)
    from dataclasses import replace

    roots = replace(production(), issuers=[Issuer(issuer.issuer, issuer.audience)])
    for _ in range(2):
        claims = verify(Evidence("jwt", issuer.token()), Context(NOW, roots, source))
        assert claims.values["issuer"] == issuer.issuer
    assert server.asked == ["/tenant/.well-known/openid-configuration", "/keys"]
    other = endorsement_source([f"jwks:{server.url}/other={server.url}/keys"], ca=ca)
    with pytest.raises(MissingEndorsement, match="not asked"):
        verify(Evidence("jwt", issuer.token()), Context(NOW, roots, other))


def test_a_key_set_needs_tls_that_is_believed(tls) -> None:
    server, ca = tls
    server.replies["/keys"] = Reply(b"{}")
    wanted = Wanted("jwks", {"issuer": server.url})
    urls = {server.url: server.url + "/keys"}
    assert IssuerKeys(urls, Web(ca)).fetch(wanted) == b"{}"
    with pytest.raises(Unavailable, match="SSLCertVerificationError"):
        IssuerKeys(urls).fetch(wanted)
    stranger = Authority.make("web root", NOW - timedelta(days=1), NOW + timedelta(days=1))
    with pytest.raises(Unavailable, match="SSLCertVerificationError"):
        IssuerKeys(urls, Web(stranger.pem)).fetch(wanted)
    named = server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Unavailable, match="SSLCertVerificationError"):
        IssuerKeys({server.url: named + "/keys"}, Web(ca)).fetch(wanted)


@pytest.mark.parametrize(
    "configuration",
    [
        b"{}",
        b"[]",
        b'{"issuer":"https://other.example","jwks_uri":"https://127.0.0.1/keys"}',
        b'{"issuer":"ISSUER","jwks_uri":"http://127.0.0.1/keys"}',
        b'{"issuer":"ISSUER","jwks_uri":"file:///etc/passwd"}',
        b'{"issuer":"ISSUER","jwks_uri":7}',
        b'{"issuer":"ISSUER"}',
    ],
)
def test_a_configuration_that_is_none(tls, configuration: bytes) -> None:
    server, ca = tls
    body = configuration.replace(b"ISSUER", server.url.encode())
    server.replies["/.well-known/openid-configuration"] = Reply(body)
    with pytest.raises(Unavailable):
        IssuerKeys({server.url: None}, Web(ca)).fetch(Wanted("jwks", {"issuer": server.url}))
