from __future__ import annotations

import base64
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import (
    CertificateBuilder,
    load_pem_x509_certificates,
    random_serial_number,
)
from nvidia_cases import (
    AT,
    DRIVER_ID,
    NONCE,
    NOW,
    VBIOS_ID,
    Known,
    context,
    evidence_of,
    manifests,
    pki,
    recorded,
    roots,
)
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.evidence import Evidence
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.attest.nvidia_evidence import read_devices, write_devices
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, MalformedEvidence, MissingExtra, NotAuthentic
from strongroom.format.encoding import b64url
from strongroom.testing.authority import Authority

REAL = Context(AT, production())


def claims_of(evidence: Evidence, context: Context = REAL) -> dict:
    (device,) = verify(evidence, context).values["devices"]
    return device


@pytest.mark.parametrize("name", ["h100", "ls10_switch"])
def test_recorded_reports_verify_at_their_time(name: str) -> None:
    entry = MANIFEST[f"nvidia/{name}.report"]
    claims = verify(
        evidence_of(recorded(name)), Context(fixed_time(f"nvidia/{name}.report"), production())
    )
    (device,) = claims.values["devices"]
    assert claims.bound.hex() == entry["nonce"]
    assert device["driver"] == entry["measurements"]["driver_version"]
    assert device["measurements"] == "no-reference"
    assert device["dbgstat"] == "unknown"
    assert device["secboot"] is False
    assert not claims.test_root
    assert claims.platform.startswith("nvidia:")
    assert len(claims.digest) == 32


def test_recorded_gpu_matches_nvidias_own_manifests() -> None:
    claims = verify(evidence_of(recorded(), endorsements=manifests()), REAL)
    (device,) = claims.values["devices"]
    assert device == {
        "arch": "HOPPER",
        "model": "GH100 A01 GSP BROM",
        "device": "0456ef114633549618e8fbe54ece97118b2f034f11b036980137a15264a46d07",
        "ueid": "478176379286082186618948445787393647364802107249",
        "driver": "550.90.07",
        "vbios": "96.00.9F.00.01",
        "fwid": MANIFEST["nvidia/h100.report"]["measurements"]["fwid"],
        "protected_pcie": False,
        "mode": None,
        "measurements": "match",
        "differing": [],
        "references": [VBIOS_ID, DRIVER_ID],
        "secboot": True,
        "dbgstat": "disabled",
    }
    # The signer of the VBIOS manifest ends first.
    assert claims.not_after == datetime(2026, 2, 22, 23, 17, 58, tzinfo=UTC)


def test_manifests_come_from_the_source_by_name() -> None:
    driver, vbios = manifests()
    source = Known({("nvidia-rim", DRIVER_ID): driver, ("nvidia-rim", VBIOS_ID): vbios})
    assert (
        claims_of(evidence_of(recorded()), Context(AT, production(), source))["measurements"] == "match"
    )
    names = {one.members["id"] for one in source.asked if one.what == "nvidia-rim"}
    assert names == {DRIVER_ID, VBIOS_ID}


def test_a_source_without_the_manifests() -> None:
    source = Known({})
    device = claims_of(evidence_of(recorded()), Context(AT, production(), source))
    assert device["measurements"] == "no-reference"
    # What came along is not asked for again.
    source = Known({})
    verify(evidence_of(recorded(), endorsements=manifests()), Context(AT, production(), source))
    assert {one.what for one in source.asked} == {"nvidia-ocsp"}


def test_without_lxml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lxml", None)
    assert verify(evidence_of(recorded()), REAL).bound
    with pytest.raises(MissingExtra, match="packages"):
        verify(evidence_of(recorded(), endorsements=manifests()), REAL)


def test_one_manifest_is_no_match() -> None:
    for one in manifests():
        device = claims_of(evidence_of(recorded(), endorsements=(one,)))
        assert device["measurements"] == "no-reference"
        assert len(device["references"]) == 1


def test_manifests_of_other_versions_are_not_used() -> None:
    others = (
        read("nvidia/Driver_RIM_test_no_gpu.swidtag"),
        read("nvidia/1010_0200_882_96005E0001_PROD.swidtag"),
    )
    device = claims_of(evidence_of(recorded(), endorsements=others))
    assert (device["measurements"], device["references"]) == ("no-reference", [])


def test_a_source_that_answers_with_another_manifest_is_refused() -> None:
    _, vbios = manifests()
    source = Known({("nvidia-rim", DRIVER_ID): vbios, ("nvidia-rim", VBIOS_ID): vbios})
    with pytest.raises(NotAuthentic, match="another version"):
        verify(evidence_of(recorded()), Context(AT, production(), source))


@pytest.mark.parametrize("moment", ["2024-01-01", "2026-03-01"])
def test_manifests_that_do_not_hold_are_refused(moment: str) -> None:
    at = datetime.fromisoformat(moment).replace(tzinfo=UTC)
    with pytest.raises(NotAuthentic, match="not valid now"):
        verify(evidence_of(recorded(), endorsements=manifests()), Context(at, production()))


def test_every_part_of_a_report_is_signed() -> None:
    good = read("nvidia/h100.report")
    places = {*range(60), *range(60, len(good), 23), *range(len(good) - 540, len(good), 2)}
    for at in sorted(places):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        with pytest.raises(EvidenceError):
            verify(evidence_of(recorded(report=bytes(bad))), REAL)


def test_every_part_of_the_leaf_is_signed() -> None:
    leaf, *rest = load_pem_x509_certificates(read("nvidia/h100.pem"))
    good = leaf.public_bytes(Encoding.DER)
    above = b"".join(one.public_bytes(Encoding.PEM) for one in rest)
    for at in range(0, len(good), 7):
        bad = bytearray(good)
        bad[at] ^= 1 << at % 8
        pem = (
            b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(bad) + b"-----END CERTIFICATE-----\n"
        )
        with pytest.raises(EvidenceError):
            verify(evidence_of(recorded(pem=pem + above)), REAL)


def test_a_chain_in_another_order_or_cut_is_refused() -> None:
    chain = [
        one.public_bytes(Encoding.PEM) for one in load_pem_x509_certificates(read("nvidia/h100.pem"))
    ]
    good = b"".join(chain[:-1])
    assert verify(evidence_of(recorded(pem=good)), REAL).bound
    for bad in (
        chain[::-1],
        chain[1:],
        chain[:2],
        chain[:1],
        [chain[0], *chain[2:]],
        chain[4:],
        chain * 2,
    ):
        with pytest.raises(EvidenceError):
            verify(evidence_of(recorded(pem=b"".join(bad))), REAL)


def test_one_device_with_the_chain_of_another_is_refused() -> None:
    with pytest.raises(NotAuthentic, match="signature"):
        verify(evidence_of(recorded(pem=read("nvidia/ls10_switch.pem"))), REAL)


def test_what_the_attester_says_of_a_device_is_not_believed() -> None:
    said = recorded() | {"arch": "BLACKWELL", "uuid": "GPU-another"}
    assert claims_of(evidence_of(said))["arch"] == "HOPPER"


def test_the_form_of_confidential_containers() -> None:
    report, pem = read("nvidia/h100.report"), read("nvidia/h100.pem")
    plain = verify(evidence_of(recorded()), REAL)
    for text in (base64.b64encode(report).decode(), report.hex()):
        entry = {
            "arch": "HOPPER",
            "uuid": "",
            "evidence": text,
            "certificate": base64.b64encode(pem).decode(),
        }
        data = json.dumps({"device_evidence_list": [entry]}).encode()
        assert verify(Evidence("nvidia", data), REAL) == plain


# Synthetic devices.


@pytest.mark.parametrize(
    ("model", "arch", "mode"),
    [
        ("GH100 A01 GSP BROM", "HOPPER", None),
        ("GB100 A01 GSP BROM", "BLACKWELL", "MPT"),
        ("LS_10 A01 FSP BROM", "LS10", None),
    ],
)
def test_synthetic_devices_match(model: str, arch: str, mode: str | None) -> None:
    claims = verify(pki().evidence(NONCE, [pki().gpu(model)]), context())
    (device,) = claims.values["devices"]
    assert (device["arch"], device["mode"], device["measurements"]) == (arch, mode, "match")
    assert claims.bound == NONCE
    assert claims.test_root
    assert not claims.debug
    assert not claims.faults


def test_test_roots_are_not_nvidias() -> None:
    with pytest.raises(NotAuthentic):
        verify(pki().evidence(NONCE), Context(NOW, production()))
    with pytest.raises(NotAuthentic):
        verify(evidence_of(recorded()), context(AT))


def test_a_manifest_under_another_root_is_refused() -> None:
    mixed = replace(roots(), nvidia_rim=production().nvidia_rim)
    with pytest.raises(NotAuthentic):
        verify(pki().evidence(NONCE), Context(NOW, mixed))


def test_differences_are_reported() -> None:
    changed = {3: bytes(48), 25: bytes(48), 60: bytes(48)}
    claims = verify(pki().evidence(NONCE, measurements=changed), context())
    (device,) = claims.values["devices"]
    # 60 is in no manifest.
    assert (device["measurements"], device["differing"]) == ("mismatch", [3, 25])
    assert device["secboot"] is False
    assert device["dbgstat"] == "unknown"


def test_a_measurement_that_is_not_there_differs() -> None:
    gpu = pki().gpu()
    report = gpu.report(NONCE)
    # The last block of the driver's manifest under a number that no manifest knows.
    at = 37 + 8 + 40 * 55
    assert report[at] == 41
    moved = bytearray(report)
    moved[at] = 200
    body = bytes(moved[:-96])
    evidence = Evidence(
        "nvidia",
        write_devices([(body + gpu.leaf.sign(body), gpu.chain)]),
        pki().manifests(),
    )
    assert claims_of(evidence, context())["differing"] == [40]


@pytest.mark.parametrize(("status", "differing"), [(b"\x55", []), (b"\xaa", [35])])
def test_the_video_decoder_counts_only_where_it_is_on(status: bytes, differing: list[int]) -> None:
    evidence = pki().evidence(NONCE, measurements={35: bytes(48)}, opaque={11: status})
    assert claims_of(evidence, context())["differing"] == differing


def test_all_devices_are_bound_to_one_nonce() -> None:
    gpus = [pki().gpu() for _ in range(2)]
    reports = [(gpus[0].report(NONCE), gpus[0].chain), (gpus[1].report(bytes(32)), gpus[1].chain)]
    with pytest.raises(NotAuthentic, match="one nonce"):
        verify(Evidence("nvidia", write_devices(reports)), context())


def test_one_device_does_not_count_as_two() -> None:
    gpu = pki().gpu()
    reports = [(gpu.report(NONCE), gpu.chain), (gpu.report(NONCE, driver="1.2"), gpu.chain)]
    with pytest.raises(NotAuthentic, match="same device"):
        verify(Evidence("nvidia", write_devices(reports)), context())


def test_the_nonce_of_the_device_itself_binds_nothing() -> None:
    """The response has a nonce too, of the GPU's own choice: the recorded one differs."""
    report = read("nvidia/h100.report")
    own = report[37 + 8 + 3520 :][:32]
    bound = verify(evidence_of(recorded()), REAL).bound
    assert bound == report[4:36] != own


def test_firmware_must_be_that_of_the_certificate() -> None:
    with pytest.raises(NotAuthentic, match="another firmware"):
        verify(pki().evidence(NONCE, opaque={20: bytes(48)}), context())


def test_a_chain_without_firmware_id_is_refused() -> None:
    since, until = pki().since, pki().until
    chip = Authority.make("GH100 A01 GSP BROM", since, until, pki().issuer)
    leaf = Authority.make("GH100 FMC LF", since, until, chip, ca=False)
    gpu = pki().gpu()
    chain = b"".join([leaf.pem, chip.pem, gpu.chain[gpu.chain.index(pki().issuer.pem) :]])
    fake = replace(gpu, leaf=leaf, chain=chain)
    with pytest.raises(NotAuthentic, match="what firmware"):
        verify(pki().evidence(NONCE, [fake]), context())


def test_a_key_that_nvidias_root_has_issued_itself_is_that_of_no_chip() -> None:
    since, until = pki().since, pki().until
    leaf = Authority.make("GH100 FMC LF", since, until, pki().device_root, ca=False)
    fake = replace(pki().gpu(), leaf=leaf, chain=leaf.pem + pki().device_root.pem)
    with pytest.raises(NotAuthentic, match="one of its chip"):
        verify(pki().evidence(NONCE, [fake]), context())


def test_a_key_of_another_curve_is_refused() -> None:
    key, gpu = ec.generate_private_key(ec.SECP256R1()), pki().gpu()
    chip = Authority.make("GH100 A01 GSP BROM", pki().since, pki().until, pki().issuer)
    builder = CertificateBuilder(
        chip.certificate.subject,
        gpu.leaf.certificate.subject,
        key.public_key(),
        random_serial_number(),
        pki().since,
        pki().until,
    )
    for one in gpu.leaf.certificate.extensions:
        builder = builder.add_extension(one.value, one.critical)
    leaf = Authority(builder.sign(chip.key, hashes.SHA384()), key)
    chain = b"".join([leaf.pem, chip.pem, gpu.chain[gpu.chain.index(pki().issuer.pem) :]])
    with pytest.raises(NotAuthentic, match="not signed by a P-384 key"):
        verify(pki().evidence(NONCE, [replace(gpu, leaf=leaf, chain=chain)]), context())


def test_blackwells_flags() -> None:
    debug = verify(pki().evidence(NONCE, [pki().gpu("GB100 A01 GSP BROM", flags=0x10)]), context())
    assert debug.debug
    assert debug.values["devices"][0]["dbgstat"] == "unknown"
    insecure = verify(pki().evidence(NONCE, [pki().gpu("GB100 A01 GSP BROM", flags=0x40)]), context())
    assert not insecure.debug
    assert insecure.faults == ["The firmware of GB100 A01 GSP BROM says that it is not secure."]


@pytest.mark.parametrize("flags", [(0x10, 0), (0, 0x10), (0x40, 0), (0, 0x40)])
def test_one_device_among_others_speaks_for_all(flags) -> None:
    gpus = [pki().gpu("GB100 A01 GSP BROM", flags=one) for one in flags]
    claims = verify(pki().evidence(NONCE, gpus), context())
    assert claims.debug is (0x10 in flags)
    assert len(claims.faults) == (0x40 in flags)


def test_a_chip_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotAuthentic, match="not of a GPU"):
        verify(pki().evidence(NONCE, [pki().gpu("XX100 A01 GSP BROM")]), context())


@pytest.mark.parametrize("days", [-2, 4000])
def test_validity_of_the_chain(days: int) -> None:
    with pytest.raises(NotAuthentic, match="not valid now"):
        verify(pki().evidence(NONCE), context(NOW + timedelta(days=days)))


def test_a_gpu_cannot_sign_for_another() -> None:
    """A leaf that another firmware key has issued: firmware keys are no authorities."""
    thief = pki().gpu()
    leaf = Authority.make("GH100 FMC LF", pki().since, pki().until, thief.leaf, ca=False)
    fake = replace(thief, leaf=leaf, chain=leaf.pem + thief.chain)
    with pytest.raises(NotAuthentic):
        verify(pki().evidence(NONCE, [fake]), context())


def test_eight_gpus_fit_into_one_piece_of_evidence() -> None:
    gpus = [pki().gpu() for _ in range(8)]
    evidence = pki().evidence(NONCE, gpus)
    assert len(evidence.data) < MAX_EVIDENCE
    claims = verify(evidence, context())
    assert len(claims.values["devices"]) == 8
    assert {one["measurements"] for one in claims.values["devices"]} == {"match"}
    assert len({one["device"] for one in claims.values["devices"]}) == 8


def test_real_devices_fit_too() -> None:
    """Eight times the recorded device, with what eight real ones would not share."""
    report, pem = read("nvidia/h100.report"), read("nvidia/h100.pem")
    one = write_devices([(report, pem)])
    ((_, certificates),) = read_devices(one)
    own = sum(len(certificate.public_bytes(Encoding.PEM)) for certificate in certificates[:2])
    shared = sum(len(certificate.public_bytes(Encoding.PEM)) for certificate in certificates[2:])
    newlines = 150
    assert 8 * (len(b64url(report)) + own + newlines) + shared < MAX_EVIDENCE


def test_manifests_are_verified_once_for_all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    from strongroom.attest import nvidia_measurements

    calls = []
    real = nvidia_measurements.verify_rim
    monkeypatch.setattr(nvidia_measurements, "verify_rim", lambda *args: calls.append(1) or real(*args))
    verify(pki().evidence(NONCE, [pki().gpu() for _ in range(4)]), context())
    assert len(calls) == 2


def test_many_manifests_of_one_version_are_refused() -> None:
    evidence = pki().evidence(NONCE)
    driver = evidence.endorsements[0]
    many = Evidence("nvidia", evidence.data, [driver + b" " * n for n in range(6)])
    with pytest.raises(MalformedEvidence, match="too many"):
        verify(many, context())


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b'{"devices":[]}',
        b'{"devices":{}}',
        b'{"devices":[1]}',
        b'{"devices":[{}]}',
        b'{"devices":[{"report":"!","certificates":""}]}',
        b'{"devices":[{"report":"AA","certificates":""}]}',
        b'{"devices":[{"report":"AA","certificates":7}]}',
        b'{"devices":[],"devices":[]}',
        b'{"device_evidence_list":[{"evidence":"zz!","certificate":""}]}',
        b'{"device_evidence_list":[{"evidence":7,"certificate":""}]}',
        b"\xff",
        b"{" * 100,
    ],
)
def test_malformed_evidence(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        verify(Evidence("nvidia", data), REAL)


def test_too_many_devices() -> None:
    entry = {"report": "AA", "certificates": ""}
    with pytest.raises(MalformedEvidence, match="one to 16"):
        verify(evidence_of(*[entry] * 17), REAL)
