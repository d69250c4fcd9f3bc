from __future__ import annotations

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from nvidia_cases import AT, DRIVER_ID, VBIOS_ID, evidence_of, manifests, recorded
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.sources import (
    CachingSource,
    ChainSource,
    DirectorySource,
    HttpSource,
    SharedDirectory,
    endorsement_source,
    files,
)
from strongroom.attest.sources.content import names_of
from strongroom.attest.sources.naming import path_of
from strongroom.attest.sources.validity import valid_until
from strongroom.attest.verify import Context, verify
from strongroom.errors import MissingEndorsement, NotAuthentic, Unavailable, UsageError
from strongroom.testing.amd import SnpPki
from strongroom.testing.nvidia import NvidiaPki

DRIVER = Wanted("nvidia-rim", {"id": DRIVER_ID})
VBIOS = Wanted("nvidia-rim", {"id": VBIOS_ID})
TDX = Wanted("intel", {"tee": "tdx", "fmspc": "B0C06F000000", "ca": "platform"})
JWKS = Wanted("jwks", {"issuer": "https://issuer.example/a"})
VCEK = Wanted(
    "amd-vcek",
    {
        "product": "Turin",
        "hwid": "0A" * 8,
        "fmc": "1",
        "bl": "2",
        "tee": "0",
        "snp": "3",
        "ucode": "78",
    },
)


class Source:
    """Answers in turn with bytes, or raises; counts."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self._answers = list(answers)
        self.count = 0

    def fetch(self, wanted: Wanted) -> bytes:
        self.count += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


MISSING = MissingEndorsement("none")
DOWN = Unavailable("down")


# Names.


def test_names() -> None:
    assert path_of(DRIVER) == f"nvidia-rim/{DRIVER_ID}.xml"
    assert path_of(TDX) == "intel/tdx_b0c06f000000_platform.json"
    assert path_of(VCEK) == "amd-vcek/Turin_0a0a0a0a0a0a0a0a_1_2_0_3_78.der"
    assert path_of(JWKS) == "jwks/https%3A%2F%2Fissuer.example%2Fa.json"
    assert (
        path_of(Wanted("amd-crl", {"signer": "vlek", "product": "Milan"})) == "amd-crl/Milan_vlek.crl"
    )
    long = path_of(Wanted("nvidia-ocsp", {"request": "ab" * 200}))
    assert len(os.path.basename(long)) == 64 + 4
    assert long != path_of(Wanted("nvidia-ocsp", {"request": "ab" * 199}))


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted("x"),
        Wanted("nvidia-rim"),
        Wanted("nvidia-rim", {"id": ""}),
        Wanted("nvidia-rim", {"id": "a", "more": "b"}),
        Wanted("intel", {"tee": "tdx", "fmspc": "00"}),
        Wanted("../x", {"id": "a"}),
    ],
)
def test_names_of_nothing(wanted: Wanted, tmp_path: Path) -> None:
    with pytest.raises(MissingEndorsement):
        path_of(wanted)
    with pytest.raises(MissingEndorsement):
        DirectorySource(tmp_path).fetch(wanted)


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "..", ".", "a/../../b", "a\x00b"]
)
def test_names_do_not_lead_out_of_a_directory(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "passwd.xml").write_bytes(b"secret")
    wanted = Wanted("nvidia-rim", {"id": name})
    with pytest.raises(MissingEndorsement):
        DirectorySource(inside).fetch(wanted)
    stored = DirectorySource(inside).store(wanted, b"x")
    assert os.path.realpath(stored).startswith(str(inside))


# A directory.


def test_a_directory_by_names(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    for wanted in (DRIVER, TDX, JWKS, VCEK):
        with pytest.raises(MissingEndorsement):
            source.fetch(wanted)
        source.store(wanted, path_of(wanted).encode())
        assert source.fetch(wanted) == path_of(wanted).encode()
    assert not [name for _, _, names in os.walk(tmp_path) for name in names if name.startswith("tmp")]


def test_a_directory_by_content(tmp_path: Path) -> None:
    for name in ("tdx_B0C06F000000", "tdx_90C06F000000", "sgx_00A067110000"):
        (tmp_path / f"{name}-of-today").write_bytes(read(f"dcap/collateral/{name}.json"))
    driver, vbios = manifests()
    (tmp_path / "a.swidtag").write_bytes(driver)
    (tmp_path / "b.swidtag").write_bytes(vbios)
    (tmp_path / "garbage").write_bytes(b"<")
    (tmp_path / "more").write_bytes(b"{")
    (tmp_path / "folder").mkdir()
    source = DirectorySource(tmp_path)
    assert source.fetch(DRIVER) == driver
    assert source.fetch(VBIOS) == vbios
    ca = {"tdx": "platform", "sgx": "processor"}
    for name in ("tdx_B0C06F000000", "tdx_90C06F000000", "sgx_00A067110000"):
        tee, fmspc = name.split("_")
        wanted = Wanted("intel", {"tee": tee, "fmspc": fmspc, "ca": ca[tee]})
        assert source.fetch(wanted) == read(f"dcap/collateral/{name}.json")
        other = Wanted("intel", {"tee": tee, "fmspc": "0" * 12, "ca": ca[tee]})
        with pytest.raises(MissingEndorsement):
            source.fetch(other)
    with pytest.raises(MissingEndorsement):
        source.fetch(Wanted("intel", {"tee": "sgx", "fmspc": "B0C06F000000", "ca": "platform"}))
    (tmp_path / "c.swidtag").write_bytes(driver + b"\n")
    with pytest.raises(MissingEndorsement, match="several"):
        source.fetch(DRIVER)


def test_amds_files_by_content(tmp_path: Path) -> None:
    """Those of the recorded reports, all in one directory, and the reports verify with them."""
    names = ["milan_v3", "turin_v5", "genoa_v5"]
    for name in names:
        (tmp_path / f"{name}-key").write_bytes(read(f"snp/{name}.vek"))
        product = name.split("_")[0]
        chain = read(f"snp/roots/{product}_ask_ark_asvk.pem")
        (tmp_path / f"{product}-chain").write_bytes(chain)
    # As read-only media are: one file there is of no use, and in nobody's way.
    (tmp_path / "huge").write_bytes(bytes((1 << 20) + 1))
    source = DirectorySource(tmp_path)
    for signer in ("vcek", "vlek"):
        wanted = Wanted("amd-chain", {"product": "Genoa", "signer": signer})
        assert source.fetch(wanted) == read("snp/roots/genoa_ask_ark_asvk.pem")
    for name in names:
        (wanted,) = (path for path in names_of(read(f"snp/{name}.vek")))
        assert wanted.startswith(f"amd-vcek/{name.split('_')[0].capitalize()}_")


@pytest.mark.parametrize("by_name", [False, True])
def test_a_report_of_amd_with_all_that_it_needs_from_files(tmp_path: Path, by_name: bool) -> None:
    pki = SnpPki.create(AT)
    report = pki.report(b"bound")
    parts = {"key": pki.key_der, "chain": pki.chain_pem, "list": pki.crl()}
    source = DirectorySource(tmp_path)
    for name, data in parts.items():
        if by_name:
            for path in names_of(data):
                (tmp_path / path).parent.mkdir(exist_ok=True)
                (tmp_path / path).write_bytes(data)
        else:
            (tmp_path / name).write_bytes(data)
    context = Context(AT, pki.roots(production()), source)
    assert verify(Evidence("snp", report), context).bound.startswith(b"bound")
    for path in [*tmp_path.rglob("*.crl"), tmp_path / "list"]:
        path.unlink(missing_ok=True)
    with pytest.raises(MissingEndorsement):
        verify(Evidence("snp", report), context)


def test_names_by_content_follow_the_file(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    file = tmp_path / "manifest"
    file.write_bytes(manifests()[0])
    assert source.fetch(DRIVER) == manifests()[0]
    file.write_bytes(manifests()[1])
    os.utime(file, (1, 1))
    with pytest.raises(MissingEndorsement):
        source.fetch(DRIVER)
    assert source.fetch(VBIOS) == manifests()[1]


@pytest.mark.parametrize("settled", [False, True])
def test_a_file_that_changes_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled: bool
) -> None:
    monkeypatch.setattr(files, "_SETTLED", -1 if settled else 600 * 10**9)
    read_files = []
    content = files._content
    monkeypatch.setattr(files, "_content", lambda path: (read_files.append(path), content(path))[1])
    source = DirectorySource(tmp_path)
    path = source.store(DRIVER, b"first")
    assert source.fetch(DRIVER) == source.fetch(DRIVER) == b"first"
    # What has just changed could change again without a trace.
    assert len(read_files) == (1 if settled else 2)
    before = os.stat(path)
    while os.stat(path).st_ctime_ns == before.st_ctime_ns:
        Path(path).write_bytes(b"again")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert source.fetch(DRIVER) == b"again"
    os.unlink(path)
    with pytest.raises(MissingEndorsement):
        source.fetch(DRIVER)


def test_a_large_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_SETTLED", -1)
    files._kept_content.cache_clear()
    source = DirectorySource(tmp_path)
    source.store(DRIVER, bytes(64 << 10))
    source.store(VBIOS, bytes((64 << 10) + 1))
    assert len(source.fetch(DRIVER)) + 1 == len(source.fetch(VBIOS))
    assert files._kept_content.cache_info().currsize == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"<a/>",
        b"[]",
        b"{" * 100,
        b'{"tcb_info":"[]","pck_crl_issuer_chain":""}',
        b'{"tcb_info":"{\\"id\\":7}","pck_crl_issuer_chain":""}',
        b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN X509 CRL-----",
        bytes(100),
    ],
)
def test_content_that_is_nothing(data: bytes) -> None:
    assert names_of(data) == frozenset()


def test_a_directory_in_a_verification(tmp_path: Path) -> None:
    """Intel's and NVIDIA's, from the same directory, on the path that live evidence takes."""
    source = DirectorySource(tmp_path)
    for data in manifests():
        (tmp_path / f"{len(data)}").write_bytes(data)
    (tmp_path / "collateral").write_bytes(read("dcap/collateral/tdx_B0C06F000000.json"))
    claims = verify(evidence_of(recorded()), Context(AT, production(), source))
    assert claims.values["devices"][0]["measurements"] == "match"
    at = fixed_time("dcap/tdx_v4.bin")
    quote = Evidence("tdx", read("dcap/tdx_v4.bin"))
    assert verify(quote, Context(at, production(), source)).values["tcb_status"] == "UpToDate"


def test_files_that_are_too_large_or_unreadable(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path)
    path = Path(source.store(DRIVER, bytes((1 << 20) + 1)))
    with pytest.raises(MissingEndorsement, match="more than"):
        source.fetch(DRIVER)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(Unavailable):
        source.fetch(DRIVER)


def test_no_directory() -> None:
    with pytest.raises(UsageError):
        DirectorySource("/nowhere")


# Validity.


def test_validity_of_recorded_endorsements() -> None:
    assert valid_until(DRIVER, manifests()[0]) == datetime(2026, 6, 1, 2, 8, 29, tzinfo=UTC)
    assert valid_until(TDX, read("dcap/collateral/tdx_B0C06F000000.json")) == datetime(
        2025, 7, 19, 10, 0, 35, tzinfo=UTC
    )
    ocsp = Wanted("nvidia-ocsp", {"request": "00"})
    assert valid_until(ocsp, read("nvidia/h100_l4.ocsp")) == datetime(2025, 8, 22, 6, 47, 7, tzinfo=UTC)
    chain = Wanted("amd-chain", {"product": "Milan", "signer": "vcek"})
    assert valid_until(chain, read("snp/roots/milan_ask_ark_asvk.pem")) > AT
    vek = next(name for name in MANIFEST if name.endswith("milan_v3.vek"))
    assert valid_until(VCEK, read(vek)) > AT


@pytest.mark.parametrize(
    "what", ["intel", "amd-vcek", "amd-chain", "amd-crl", "nvidia-rim", "nvidia-ocsp"]
)
@pytest.mark.parametrize("data", [b"", b"x", b"{}", b"<a/>", b"\x30\x03\x0a\x01\x06"])
def test_validity_of_what_is_none(what: str, data: bytes) -> None:
    assert valid_until(Wanted(what), data) is None


# A chain.


def test_the_first_that_has_it() -> None:
    last = Source(b"last")
    assert ChainSource([Source(MISSING), Source(b"one"), last]).fetch(DRIVER) == b"one"
    assert last.count == 0
    assert ChainSource([Source(DOWN), Source(b"two")]).fetch(DRIVER) == b"two"
    with pytest.raises(Unavailable):
        ChainSource([Source(DOWN), Source(MISSING)]).fetch(DRIVER)
    with pytest.raises(MissingEndorsement):
        ChainSource([Source(MISSING), Source(MISSING)]).fetch(DRIVER)
    with pytest.raises(MissingEndorsement):
        ChainSource([]).fetch(DRIVER)


# A cache.


class Clock:
    def __init__(self, now: datetime = AT) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def add(self, **more: float) -> None:
        self.now += timedelta(**more)


def test_a_cache_asks_once_an_hour() -> None:
    clock, source = Clock(), Source(manifests()[0])
    cache = CachingSource(source, clock=clock)
    for _ in range(5):
        assert cache.fetch(DRIVER) == manifests()[0]
    assert source.count == 1
    clock.add(minutes=61)
    cache.fetch(DRIVER)
    assert source.count == 2
    cache.fetch(VBIOS)
    assert source.count == 3


def test_a_stale_answer_is_served_while_it_holds() -> None:
    clock, source = Clock(), Source(manifests()[0], DOWN)
    cache = CachingSource(source, clock=clock)
    cache.fetch(DRIVER)
    clock.add(days=30)
    assert cache.fetch(DRIVER) == manifests()[0]
    assert source.count == 2
    clock.now = datetime(2026, 6, 1, 2, 8, 30, tzinfo=UTC)
    with pytest.raises(Unavailable):
        cache.fetch(DRIVER)


def test_nothing_is_fresh_past_its_own_end() -> None:
    """An OCSP response that ends in half an hour, and a cache of an hour."""
    wanted = Wanted("nvidia-ocsp", {"request": "00"})
    response = read("nvidia/h100_l4.ocsp")
    clock = Clock(datetime(2025, 8, 22, 6, 17, tzinfo=UTC))
    source = Source(response, DOWN)
    cache = CachingSource(source, clock=clock)
    assert cache.fetch(wanted) == cache.fetch(wanted) == response
    clock.add(minutes=31)
    with pytest.raises(Unavailable):
        cache.fetch(wanted)


def test_a_clock_that_is_set_back_makes_nothing_fresh() -> None:
    clock, source = Clock(), Source(manifests()[0])
    cache = CachingSource(source, clock=clock)
    cache.fetch(DRIVER)
    clock.add(days=-1)
    cache.fetch(DRIVER)
    assert source.count == 2


def test_what_cannot_be_read_is_passed_on_and_not_kept() -> None:
    source = Source(b"rubbish", manifests()[0])
    cache = CachingSource(source, clock=Clock())
    assert cache.fetch(DRIVER) == b"rubbish"
    assert cache.fetch(DRIVER) == manifests()[0]
    expired = CachingSource(source, clock=Clock(datetime(2027, 1, 1, tzinfo=UTC)))
    expired.fetch(DRIVER)
    expired.fetch(DRIVER)
    assert source.count == 4


def test_absence_is_remembered_for_seconds() -> None:
    clock, source = Clock(), Source(MISSING, MISSING, manifests()[0])
    cache = CachingSource(source, clock=clock)
    for _ in range(3):
        with pytest.raises(MissingEndorsement):
            cache.fetch(DRIVER)
    assert source.count == 1
    clock.add(seconds=11)
    with pytest.raises(MissingEndorsement):
        cache.fetch(DRIVER)
    clock.add(seconds=11)
    assert cache.fetch(DRIVER) == manifests()[0]


def test_failure_is_not_remembered() -> None:
    source = Source(DOWN, manifests()[0])
    cache = CachingSource(source, clock=Clock())
    with pytest.raises(Unavailable):
        cache.fetch(DRIVER)
    assert cache.fetch(DRIVER) == manifests()[0]


def test_key_sets_are_passed_on_and_not_kept(tmp_path: Path) -> None:
    source = Source(b'{"keys":[]}', DOWN)
    cache = CachingSource(source, clock=Clock(), shared=SharedDirectory(tmp_path))
    assert cache.fetch(JWKS) == b'{"keys":[]}'
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    # Nor is one believed that somebody has put there.
    SharedDirectory(tmp_path).write(JWKS, b'{"keys":[1]}')
    with pytest.raises(Unavailable):
        cache.fetch(JWKS)


@pytest.mark.parametrize("answer", [manifests()[0], DOWN, MISSING])
def test_one_flight_for_all_who_wait(answer: bytes | Exception) -> None:
    started, go = threading.Event(), threading.Event()

    class Slow(Source):
        def fetch(self, wanted: Wanted) -> bytes:
            started.set()
            go.wait(60)
            return super().fetch(wanted)

    source = Slow(answer)
    cache = CachingSource(source, clock=Clock())
    results: list[object] = []

    def ask() -> None:
        try:
            results.append(cache.fetch(DRIVER))
        except (Unavailable, MissingEndorsement) as error:
            results.append(type(error))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    started.wait(60)
    while len(cache._flights) != 1:
        time.sleep(0.001)
    time.sleep(0.05)
    go.set()
    for thread in threads:
        thread.join()
    assert len(results) == 16
    assert len(set(results)) == 1
    # Whoever came after an answer of "down" asks anew; all others have waited.
    assert source.count == 1 if not isinstance(answer, Unavailable) else source.count <= 16


def test_the_cache_is_bounded() -> None:
    pki = NvidiaPki(AT - timedelta(days=1))
    manifest = pki.manifest("1", {0: [bytes(48)]})
    source = Source(manifest)
    cache = CachingSource(source, clock=Clock())
    for number in range(600):
        cache.fetch(Wanted("nvidia-rim", {"id": f"R{number}"}))
    assert len(cache._entries) == 512
    cache.fetch(Wanted("nvidia-rim", {"id": "R599"}))
    assert source.count == 600
    cache.fetch(Wanted("nvidia-rim", {"id": "R0"}))
    assert source.count == 601


def test_a_cache_on_disk_outlives_the_process(tmp_path: Path) -> None:
    clock = Clock()
    CachingSource(Source(manifests()[0]), clock=clock, shared=SharedDirectory(tmp_path)).fetch(DRIVER)
    CachingSource(Source(b'{"keys":[]}'), clock=clock, shared=SharedDirectory(tmp_path)).fetch(JWKS)
    again = CachingSource(Source(DOWN), clock=clock, shared=SharedDirectory(tmp_path))
    assert again.fetch(DRIVER) == manifests()[0]
    for wanted in (VBIOS, JWKS):
        with pytest.raises(Unavailable):
            again.fetch(wanted)
    clock.now = datetime(2026, 7, 1, tzinfo=UTC)
    with pytest.raises(Unavailable):
        again.fetch(DRIVER)


def test_processes_share_a_cache_on_disk(tmp_path: Path) -> None:
    clock = Clock(datetime.now(UTC))
    manifest = NvidiaPki(clock.now - timedelta(days=1)).manifest("1", {0: [bytes(48)]})
    first, second = Source(manifest), Source(manifest)
    CachingSource(first, clock=clock, shared=SharedDirectory(tmp_path)).fetch(DRIVER)
    clock.add(seconds=1)
    cache = CachingSource(second, clock=clock, shared=SharedDirectory(tmp_path))
    assert cache.fetch(DRIVER) == cache.fetch(DRIVER) == manifest
    assert (first.count, second.count) == (1, 0)
    clock.add(minutes=61)
    cache.fetch(DRIVER)
    assert second.count == 1


def test_a_process_whose_answer_is_old_looks_whether_another_has_asked(tmp_path: Path) -> None:
    clock = Clock(datetime.now(UTC))
    manifest = NvidiaPki(clock.now - timedelta(days=1)).manifest("1", {0: [bytes(48)]})
    sources = Source(manifest), Source(manifest)
    one, two = (
        CachingSource(source, clock=clock, shared=SharedDirectory(tmp_path)) for source in sources
    )
    one.fetch(DRIVER)
    clock.add(seconds=1)
    two.fetch(DRIVER)
    clock.add(minutes=61)
    two.fetch(DRIVER)
    (path,) = (tmp_path / "nvidia-rim").iterdir()
    os.utime(path, (clock.now.timestamp(), clock.now.timestamp()))
    clock.add(seconds=1)
    one.fetch(DRIVER)
    assert [source.count for source in sources] == [1, 1]


def test_a_disk_that_takes_nothing_is_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "nvidia-rim").write_bytes(b"")
    source = Source(manifests()[0])
    cache = CachingSource(source, clock=Clock(), shared=SharedDirectory(tmp_path))
    assert cache.fetch(DRIVER) == cache.fetch(DRIVER) == manifests()[0]
    assert source.count == 1


def test_a_cache_on_disk_that_somebody_changed_is_not_believed(tmp_path: Path) -> None:
    pki = NvidiaPki(AT - timedelta(days=1))
    forged = pki.manifest("550.90.07", {21: [bytes(48)]})
    SharedDirectory(tmp_path).write(DRIVER, forged)
    source = CachingSource(Source(DOWN), clock=Clock(), shared=SharedDirectory(tmp_path))
    assert source.fetch(DRIVER) == forged
    with pytest.raises((NotAuthentic, Unavailable)):
        verify(evidence_of(recorded()), Context(AT, production(), source))


# What a configuration says.


def test_specs(tmp_path: Path) -> None:
    assert endorsement_source([]) is None
    assert isinstance(endorsement_source([f"files:{tmp_path}"]), DirectorySource)
    assert isinstance(endorsement_source(["proxy:http://127.0.0.1:1"]), CachingSource)
    several = [
        f"files:{tmp_path}",
        "proxy:https://cache.example/endorsements",
        "vendor:intel",
        "vendor:intel=https://pcs.example",
        "vendor:amd",
        "vendor:amd=http://kds.example",
        "vendor:nvidia",
        "vendor:nvidia=http://rim.example",
        "jwks:https://issuer.example",
        "jwks:https://issuer.example=https://issuer.example/keys",
    ]
    assert isinstance(endorsement_source(several), ChainSource)
    assert endorsement_source([f"cache:{tmp_path}/new"]) is None
    assert not (tmp_path / "new").exists()
    endorsement_source([f"cache:{tmp_path}/new", "vendor:amd"])
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    for several in (["cache:", "vendor:amd"], [f"cache:{tmp_path}", f"cache:{tmp_path}"]):
        with pytest.raises(UsageError, match="one cache"):
            endorsement_source(several)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        endorsement_source([f"cache:{tmp_path}/file", "vendor:amd"])


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "files",
        "files:",
        "files:/nowhere",
        "proxy:",
        "proxy:cache.example",
        "proxy:file:///etc/passwd",
        "proxy:ftp://cache.example",
        "proxy:https://user:secret@cache.example",
        "proxy:https://cache.example/?a=b",
        "proxy:https://cache.example/ x",
        "proxy:https://cache.example:port",
        "vendor:",
        "vendor:phala",
        "vendor:intel=pcs.example",
        "jwks:",
        "jwks:http://issuer.example",
        "jwks:https://issuer.example=http://issuer.example/keys",
        "http://cache.example",
    ],
)
def test_specs_that_are_none(spec: str) -> None:
    with pytest.raises(UsageError):
        endorsement_source([spec])


def test_a_key_set_from_files_counts(tmp_path: Path) -> None:
    from dataclasses import replace

    from strongroom.attest.roots import Issuer
    from strongroom.testing.tokens import TokenIssuer

    issuer = TokenIssuer("https://issuer.example", AT)
    source = DirectorySource(tmp_path)
    source.store(Wanted("jwks", {"issuer": issuer.issuer}), issuer.jwks)
    roots = replace(production(), issuers=[Issuer(issuer.issuer, issuer.audience)])
    claims = verify(Evidence("jwt", issuer.token()), Context(AT, roots, source))
    assert claims.values["issuer"] == issuer.issuer


def test_proxies_are_not_asked_for_key_sets() -> None:
    with pytest.raises(MissingEndorsement, match="nobody signs"):
        HttpSource("http://127.0.0.1:1").fetch(JWKS)


def test_json_of_a_directory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text('{"tcb_info":' + "[" * 5000 + "]" * 5000 + "}")
    (tmp_path / "odd").write_text(json.dumps({"tcb_info": 7, "pck_crl_issuer_chain": []}))
    with pytest.raises(MissingEndorsement):
        DirectorySource(tmp_path).fetch(TDX)
