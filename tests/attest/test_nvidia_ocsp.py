from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID
from nvidia_cases import AT, NONCE, NOW, Known, context, evidence_of, manifests, pki, recorded
from recorded import fixed_time, read

from strongroom.attest.certificates import load_certificates
from strongroom.attest.nvidia_ocsp import ocsp_request, verify_response
from strongroom.attest.nvidia_rim import parse_rim, verify_rim
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import NotAuthentic, Unavailable
from strongroom.testing.authority import Authority

LEAF, CHIP, ICA, IDENTITY, ROOT = load_certificates(read("nvidia/h100.pem"))


def test_recorded_responses_are_good_for_their_day() -> None:
    response = read("nvidia/h100_l4.ocsp")
    until = verify_response(response, CHIP, ICA, AT)
    assert until - AT < timedelta(days=1)
    for now in (AT - timedelta(days=1), AT + timedelta(days=1)):
        with pytest.raises(NotAuthentic):
            verify_response(response, CHIP, ICA, now)
    at = fixed_time("nvidia/driver_rim_l4.ocsp")
    rim = verify_rim(parse_rim(manifests()[0]), production().nvidia_rim, at)
    assert verify_response(read("nvidia/driver_rim_l4.ocsp"), rim.chain[0], rim.chain[1], at) > at


def test_a_recorded_response_is_for_one_certificate() -> None:
    with pytest.raises(NotAuthentic):
        verify_response(read("nvidia/h100_l4.ocsp"), ICA, IDENTITY, AT)
    with pytest.raises(NotAuthentic):
        verify_response(read("nvidia/driver_rim_l4.ocsp"), CHIP, ICA, AT)


def test_every_part_of_a_response_is_signed() -> None:
    good = read("nvidia/h100_l4.ocsp")
    accepted = 0
    for at in range(0, len(good), 3):
        bad = bytearray(good)
        bad[at] ^= 1
        try:
            accepted += verify_response(bytes(bad), CHIP, ICA, AT) is not None
        except NotAuthentic:
            continue
    assert not accepted


def test_evidence_with_recorded_responses() -> None:
    asked = ocsp_request(CHIP, ICA).hex()
    source = Known({("nvidia-ocsp", asked): read("nvidia/h100_l4.ocsp")})
    claims = verify(
        evidence_of(recorded(), endorsements=manifests()), Context(AT, production(), source)
    )
    assert claims.not_after - AT < timedelta(days=1)
    requests = [one.members["request"] for one in source.asked if one.what == "nvidia-ocsp"]
    # Not for the leaf, which the GPU has made itself, nor for a root; three of the device, three of
    # each manifest, which share two.
    assert ocsp_request(LEAF, CHIP).hex() not in requests
    assert len(requests) == 9
    assert len(set(requests)) == 7


class Responder:
    """Answers every request for a while; revoked says which certificate, by its order, is."""

    def __init__(self, revoked: int = -1, by: Authority | None = None, now=NOW) -> None:
        self._revoked, self._by, self._now = revoked, by, now
        self.count = 0

    def fetch(self, wanted):
        if wanted.what != "nvidia-ocsp":
            raise Unavailable("no")
        self.count += 1
        request = bytes.fromhex(wanted.members["request"])
        return pki().ocsp(request, self._now, revoked=self.count - 1 == self._revoked, by=self._by)


def test_good_answers_shorten_the_claims() -> None:
    source = Responder()
    claims = verify(pki().evidence(NONCE), context(endorsements=source))
    assert claims.not_after == NOW + timedelta(days=1)
    assert source.count == 7


@pytest.mark.parametrize("which", range(7))
def test_each_revoked_certificate_refuses(which: int) -> None:
    with pytest.raises(NotAuthentic, match="revoked"):
        verify(pki().evidence(NONCE), context(endorsements=Responder(which)))


@pytest.mark.parametrize("days", [-2, 1])
def test_answers_that_are_not_current_refuse(days: int) -> None:
    source = Responder(now=NOW + timedelta(days=days))
    with pytest.raises(NotAuthentic, match="not current"):
        verify(pki().evidence(NONCE), context(endorsements=source))


def responder(by: Authority, *usages: x509.ObjectIdentifier) -> Authority:
    extension = [(x509.ExtendedKeyUsage(usages), True)] if usages else []
    return Authority.make("responder", pki().since, pki().until, by, ca=False, extensions=extension)


def fetch_once(signer: Authority) -> bytes:
    gpu = pki().gpu()
    _, chip, issuer, *_ = load_certificates(gpu.chain)
    data = pki().ocsp(ocsp_request(chip, issuer), NOW, by=signer)
    verify_response(data, chip, issuer, NOW)
    return data


def test_a_responder_needs_to_be_appointed_by_the_issuer() -> None:
    assert fetch_once(responder(pki().issuer, ExtendedKeyUsageOID.OCSP_SIGNING))
    for signer in (
        responder(pki().issuer),
        responder(pki().issuer, ExtendedKeyUsageOID.CLIENT_AUTH),
        responder(pki().rim_root, ExtendedKeyUsageOID.OCSP_SIGNING),
        pki().gpu().leaf,
        Authority.make("TEST Provisioner ICA", pki().since, pki().until),
    ):
        with pytest.raises(NotAuthentic):
            fetch_once(signer)


def answer(**changes) -> tuple[bytes, x509.Certificate, x509.Certificate]:
    """What the issuer says of a chip, rightly signed; ``changes`` are arguments of the library's builder."""
    _, chip, issuer, *_ = load_certificates(pki().gpu().chain)
    builder = ocsp.OCSPRequestBuilder().add_certificate(
        chip, issuer, changes.get("algorithm", hashes.SHA384())
    )
    asked = builder.build()
    given = {
        "issuer_name_hash": asked.issuer_name_hash,
        "issuer_key_hash": asked.issuer_key_hash,
        "serial_number": asked.serial_number,
        "algorithm": asked.hash_algorithm,
        "cert_status": ocsp.OCSPCertStatus.GOOD,
        "this_update": NOW,
        "next_update": NOW + timedelta(days=1),
        "revocation_time": None,
        "revocation_reason": None,
    }
    response = ocsp.OCSPResponseBuilder().add_response_by_hash(**{**given, **changes})
    signer = pki().issuer
    response = response.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
    data = response.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)
    return data, chip, issuer


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cert_status": ocsp.OCSPCertStatus.UNKNOWN}, "is revoked"),
        ({"next_update": None}, "not current"),
        ({"next_update": NOW}, "not current"),
        ({"this_update": NOW + timedelta(seconds=1)}, "not current"),
        ({"algorithm": hashes.SHA256()}, "for another certificate"),
        ({"serial_number": 5}, "for another certificate"),
        ({"issuer_name_hash": bytes(48)}, "for another certificate"),
        ({"issuer_key_hash": bytes(48)}, "for another certificate"),
    ],
)
def test_an_answer_is_good_current_and_about_this_certificate(changes, reason) -> None:
    assert verify_response(*answer(), NOW) == NOW + timedelta(days=1)
    with pytest.raises(NotAuthentic, match=reason):
        verify_response(*answer(**changes), NOW)


@pytest.mark.parametrize("data", [b"", b"\x30\x03\x0a\x01\x06", b"\x30", bytes(100)])
def test_what_is_no_good_response(data: bytes) -> None:
    """The second is a whole response, of "unauthorized"."""
    with pytest.raises(NotAuthentic):
        verify_response(data, CHIP, ICA, AT)


def test_a_source_that_fails_is_not_taken_for_good() -> None:
    class Down:
        def fetch(self, wanted):
            raise Unavailable("down")

    with pytest.raises(Unavailable):
        verify(pki().evidence(NONCE), context(endorsements=Down()))
