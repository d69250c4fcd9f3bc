"""Quotes of TPMs: recorded ones verify; whatever is changed, left out or added is refused."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from endless import with_oaep_key
from recorded import MANIFEST, fixed_time, read
from software_ak import AK, KEYS, RESTRICTED, UNTIL, Ca, SoftwareAk, pcr_values, selection

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import production
from strongroom.attest.tpm import describe
from strongroom.attest.tpm_certificates import AK_USE, EK_USE
from strongroom.attest.tpm_credential import enrol
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.tpm_keys import fingerprint
from strongroom.attest.verify import Context, verify
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic
from strongroom.format.encoding import b64url, unb64url_text

NOW = datetime(2026, 11, 1, tzinfo=UTC)
CONTEXT = Context(NOW, production())


def recorded_evidence() -> Evidence:
    raw = read("tpm/pcr.bin")
    indices = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16)
    pcrs = {index: raw[32 * at : 32 * at + 32] for at, index in enumerate(indices)}
    return TpmEvidence.build(
        read("tpm/ak.pub"),
        read("tpm/q.msg"),
        read("tpm/q.sig"),
        {"sha256": pcrs},
        read("tpm/ekcert.der"),
    )


def changed(evidence: Evidence, change) -> Evidence:
    members = json.loads(evidence.data)
    change(members)
    return replace(evidence, data=json.dumps(members).encode())


def believing(*cas: Ca, now: datetime = NOW) -> Context:
    return Context(now, replace(production(), tpm=tuple(ca.pem for ca in cas), test=True))


# Recorded


def test_every_recorded_file_of_a_tpm_is_tried_somewhere():
    names = {name for name in MANIFEST if name.startswith("tpm/")}
    # The issuer is of another day than the certificate, and has not signed it: live TPMs show chains.
    assert names == {
        *(f"tpm/{name}" for name in ("q.msg", "q.sig", "ak.pub", "ak.name", "pcr.bin", "nonce")),
        *("tpm/ekcert.der", "tpm/swtpm_localca_issuer.pem", "tpm/coco.json"),
    }


def test_a_recorded_quote_verifies():
    claims = verify(recorded_evidence(), CONTEXT)
    assert claims.bound.hex() == read("tpm/nonce").decode().strip()
    assert claims.platform == f"ak:{claims.values['ak']}"
    assert claims.values["ak_name"] == read("tpm/ak.name").hex()
    assert claims.values["pcr_bank"] == "sha256"
    assert set(claims.values["pcr"]) == {"0", "1", "2", "3", "4", "5", "6", "7", "9", "16"}
    assert bytes.fromhex("".join(claims.values["pcr"].values())) == read("tpm/pcr.bin")
    assert claims.values["ak_certified"] is False
    assert (claims.debug, claims.test_root, list(claims.faults)) == (False, False, [])
    assert len(claims.digest) == 32, "the claims have a canonical form"


def test_recorded_evidence_of_confidential_containers_verifies():
    evidence = Evidence("tpm", read("tpm/coco.json"))
    claims = verify(evidence, Context(fixed_time("tpm/coco.json"), production()))
    said = json.loads(evidence.data)
    assert claims.values["pcr"] == {
        str(index): value for index, value in enumerate(said["tpm_quote"]["pcrs"])
    }
    # SHA-384 of the runtime data, which their attester fills up with zeros.
    assert len(claims.bound) == 64
    assert claims.bound[48:] == bytes(16)
    assert "ak_name" not in claims.values
    assert claims.platform == f"ak:{claims.values['ak']}"


def with_changed_bytes(part: str) -> Iterator[Evidence]:
    evidence = recorded_evidence()
    members = json.loads(evidence.data)
    whole = unb64url_text(members[part])
    for at in range(len(whole)):
        bad = bytearray(whole)
        bad[at] ^= 0xFF
        members[part] = b64url(bytes(bad))
        yield replace(evidence, data=json.dumps(members).encode())


@pytest.mark.parametrize("part", ["quote", "signature"])
def test_every_changed_byte_of_a_recorded_quote_is_refused(part):
    for evidence in with_changed_bytes(part):
        with pytest.raises(EvidenceError):
            verify(evidence, CONTEXT)


def test_a_changed_byte_of_the_recorded_key_is_refused_or_changes_its_name_alone():
    """Bits of the attributes that nobody looks at, and nothing else, can be changed."""
    good, passed = verify(recorded_evidence(), CONTEXT), 0
    for evidence in with_changed_bytes("ak_public"):
        try:
            found = verify(evidence, CONTEXT)
        except EvidenceError:
            continue
        passed += 1
        assert found.values.pop("ak_name") != good.values["ak_name"]
        assert found.values == {name: value for name, value in good.values.items() if name != "ak_name"}
    assert passed <= 2


@pytest.mark.parametrize("part", ["message", "signature", "ak_public"])
def test_no_changed_byte_of_evidence_of_confidential_containers_passes(part):
    evidence = Evidence("tpm", read("tpm/coco.json"))
    members = json.loads(evidence.data)
    place = members if part == "ak_public" else members["tpm_quote"]
    whole = base64.b64decode(place[part])
    for at in range(len(whole)):
        bad = bytearray(whole)
        bad[at] ^= 1 << at % 8
        place[part] = base64.b64encode(bad).decode()
        with pytest.raises(EvidenceError):
            verify(Evidence("tpm", json.dumps(members).encode()), CONTEXT)


@pytest.mark.parametrize("index", range(24))
def test_each_pcr_of_confidential_containers_is_checked(index):
    members = json.loads(read("tpm/coco.json"))
    members["tpm_quote"]["pcrs"][index] = "ab" * 32
    with pytest.raises(NotAuthentic, match="not those"):
        verify(Evidence("tpm", json.dumps(members).encode()), CONTEXT)


def test_pcrs_that_were_not_quoted_do_not_become_claims():
    """Confidential Containers send 24 values, whatever the quote selects: the rest is anybody's."""
    ak = SoftwareAk()
    quote = ak.quote(b"bound")
    values = ["ee" * 32] * 24
    for index, value in ak.pcrs.items():
        values[index] = value.hex()
    spki = TpmEvidence.parse(ak.evidence().data).key
    der = spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    members = {
        "ak_public": base64.b64encode(der).decode(),
        "tpm_quote": {
            "message": base64.b64encode(quote).decode(),
            "signature": base64.b64encode(ak.sign(quote)).decode(),
            "pcrs": values,
        },
    }
    claims = verify(Evidence("tpm", json.dumps(members).encode()), CONTEXT)
    assert set(claims.values["pcr"]) == {"0", "7"}


# Made up


@pytest.mark.parametrize("scheme", ["ecdsa", "rsassa", "rsapss"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha384"])
def test_schemes(scheme, hash_name):
    claims = verify(SoftwareAk(scheme, hash_name).evidence(b"x"), CONTEXT)
    assert claims.bound == b"x"
    assert claims.values["pcr"] == {index: v.hex() for index, v in (("0", PCR0), ("7", PCR7))}


PCR0, PCR7 = pcr_values([0])[0], pcr_values([7])[7]


def test_a_quote_of_another_key_is_refused():
    other = SoftwareAk(key=ec.generate_private_key(ec.SECP256R1()))
    evidence = changed(
        SoftwareAk().evidence(), lambda members: members.update(ak_public=b64url(other.public))
    )
    with pytest.raises(NotAuthentic, match="has not signed"):
        verify(evidence, CONTEXT)


@pytest.mark.parametrize("bit", [1, 4, 5, 16, 18])
def test_a_key_that_lacks_an_attribute_is_refused(bit):
    with pytest.raises(NotAuthentic, match="lacks"):
        verify(SoftwareAk(attributes=AK & ~(1 << bit)).evidence(), CONTEXT)


def test_a_quote_that_an_unrestricted_key_was_handed_is_refused():
    """Whoever holds the machine can have such a key sign any quote that he has written himself."""
    with pytest.raises(NotAuthentic, match="restricted"):
        verify(SoftwareAk(attributes=AK & ~RESTRICTED).evidence(), CONTEXT)


def test_another_scheme_than_that_of_the_key_is_refused():
    ak, other = SoftwareAk("rsassa"), SoftwareAk("rsapss")
    quote = ak.quote(b"x")
    evidence = TpmEvidence.build(ak.public, quote, other.sign(quote), {"sha256": ak.pcrs})
    with pytest.raises(NotAuthentic, match="another way"):
        verify(evidence, CONTEXT)
    weaker = SoftwareAk("rsassa", "sha384")
    evidence = TpmEvidence.build(weaker.public, quote, ak.sign(quote), {"sha256": ak.pcrs})
    with pytest.raises(NotAuthentic, match="another way"):
        verify(evidence, CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        {"magic": 0x00000000},
        {"type": 0x8014},
        {"digest": bytes(32)},
    ],
)
def test_a_signed_statement_that_is_no_quote_of_these_pcrs_is_refused(change):
    with pytest.raises(EvidenceError):
        verify(SoftwareAk().evidence(**change), CONTEXT)


def test_pcrs_of_several_banks_are_refused():
    ak = SoftwareAk()
    pcrs = {"sha256": pcr_values([0]), "sha384": pcr_values([0], "sha384")}
    digest = hashlib.sha256(pcrs["sha256"][0] + pcrs["sha384"][0]).digest()
    both = selection("sha256", [0]) + selection("sha384", [0])
    quote = ak.quote(b"x", selections=both, count=2, digest=digest)
    with pytest.raises(MalformedEvidence, match="several banks"):
        verify(TpmEvidence.build(ak.public, quote, ak.sign(quote), pcrs), CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("pcrs"),
        lambda m: m.pop("quote"),
        lambda m: m.update(more=1),
        lambda m: m.update(pcrs=[]),
        lambda m: m.update(pcrs={}),
        lambda m: m["pcrs"].update(sha384={}),
        lambda m: m["pcrs"].update(sha1={}),
        lambda m: m["pcrs"]["sha256"].pop("7"),
        lambda m: m["pcrs"]["sha256"].update({"8": "00" * 32}),
        lambda m: m["pcrs"]["sha256"].update({"24": "00" * 32}),
        lambda m: m["pcrs"]["sha256"].update({"07": m["pcrs"]["sha256"].pop("7")}),
        lambda m: m["pcrs"]["sha256"].update({"-7": m["pcrs"]["sha256"].pop("7")}),
        lambda m: m["pcrs"]["sha256"].update({"٧": m["pcrs"]["sha256"].pop("7")}),
        lambda m: m["pcrs"]["sha256"].update({"7": m["pcrs"]["sha256"]["7"].upper()}),
        lambda m: m["pcrs"]["sha256"].update({"7": m["pcrs"]["sha256"]["7"][:-2]}),
        lambda m: m["pcrs"]["sha256"].update({"7": 7}),
        lambda m: m.update(quote=m["quote"] + "="),
        lambda m: m.update(quote=None),
        lambda m: m.update(ak_public={}),
        lambda m: m.update(ek_certificate=7),
        lambda m: m.update(tpm_quote={}),
    ],
)
def test_another_form_is_refused(change):
    evidence = changed(recorded_evidence(), lambda members: None)
    verify(evidence, CONTEXT)
    with pytest.raises(MalformedEvidence):
        verify(changed(evidence, change), CONTEXT)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(more=1),
        lambda m: m.update(tpm_quote=[]),
        lambda m: m["tpm_quote"].update(more=1),
        lambda m: m["tpm_quote"]["pcrs"].pop(),
        lambda m: m["tpm_quote"]["pcrs"].append("00" * 32),
        lambda m: m["tpm_quote"].update(pcrs={}),
        lambda m: m["tpm_quote"].update(message=m["tpm_quote"]["message"] + "\n"),
        lambda m: m["tpm_quote"].update(message=b64url(base64.b64decode(m["tpm_quote"]["message"]))),
        lambda m: m.update(ak_public=None),
        # The last character before the padding has bits that no byte takes.
        lambda m: m["tpm_quote"].update(signature=m["tpm_quote"]["signature"].replace("Qg==", "Qh==")),
    ],
)
def test_another_form_of_confidential_containers_is_refused(change):
    members = json.loads(read("tpm/coco.json"))
    broken = copy.deepcopy(members)
    change(broken)
    with pytest.raises(MalformedEvidence):
        verify(Evidence("tpm", json.dumps(broken).encode()), CONTEXT)


def test_confidential_containers_with_another_bank_are_refused():
    members = json.loads(read("tpm/coco.json"))
    message = bytearray(base64.b64decode(members["tpm_quote"]["message"]))
    at = message.index(b"\x00\x00\x00\x01\x00\x0b\x03") + 5
    message[at] = 0x0C
    members["tpm_quote"]["message"] = base64.b64encode(message).decode()
    with pytest.raises(MalformedEvidence, match="bank sha256"):
        verify(Evidence("tpm", json.dumps(members).encode()), CONTEXT)


@pytest.mark.parametrize("data", [b"{}", b"[]", b"\x00", b"{", read("tpm/q.msg")])
def test_what_is_no_evidence_is_refused(data):
    with pytest.raises(MalformedEvidence):
        verify(Evidence("tpm", data), CONTEXT)


def test_a_description_says_what_is_there_without_believing_it():
    evidence = changed(
        recorded_evidence(), lambda m: m.update(signature=b64url(SoftwareAk().sign(b"other")))
    )
    said = describe(evidence)
    assert said["report_data"] == read("tpm/nonce").decode().strip()
    assert said["pcr"]["0"] == verify(recorded_evidence(), CONTEXT).values["pcr"]["0"]


# Certificates of the attestation key


def test_a_certified_key():
    ca = Ca()
    context = believing(ca)
    for certificate in (ca.certify(KEYS["ecdsa"], use=AK_USE), ca.certify(KEYS["ecdsa"])):
        claims = verify(SoftwareAk().evidence(endorsements=[certificate]), context)
        assert claims.values["ak_certified"] is True
        assert claims.test_root
        assert claims.not_after == UNTIL.replace(tzinfo=UTC)


def test_a_way_over_authorities_that_the_evidence_brings():
    root = Ca("root", path_length=1, until=UNTIL.replace(year=2028))
    middle = Ca("middle", parent=root, path_length=0)
    other = Ca("middle")
    leaf = middle.certify(KEYS["ecdsa"], use=AK_USE)
    for endorsements in ([leaf, middle.der], [other.der, middle.der, leaf], [leaf, middle.pem]):
        claims = verify(SoftwareAk().evidence(endorsements=endorsements), believing(root))
        assert claims.values["ak_certified"] is True
        assert claims.not_after.year == 2028, "what ends first counts"
    assert not verify(SoftwareAk().evidence(endorsements=[leaf]), believing(root)).values[
        "ak_certified"
    ]
    claims = verify(SoftwareAk().evidence(endorsements=[leaf]), believing(Ca("other"), middle))
    assert claims.values["ak_certified"] is True, "what the owner believes need not be a root"


def test_a_certificate_that_leads_nowhere_certifies_nothing():
    ca, impostor = Ca("maker"), Ca("maker")
    leaf = impostor.certify(KEYS["ecdsa"], use=AK_USE)
    for context in (CONTEXT, believing(ca)):
        claims = verify(SoftwareAk().evidence(endorsements=[leaf, impostor.der]), context)
        assert claims.values["ak_certified"] is False


def test_the_certificate_of_another_key_certifies_nothing():
    ca = Ca()
    leaf = ca.certify(ec.generate_private_key(ec.SECP256R1()), use=AK_USE)
    claims = verify(SoftwareAk().evidence(endorsements=[leaf]), believing(ca))
    assert claims.values["ak_certified"] is False


def policies_critical() -> tuple:
    oid = x509.ObjectIdentifier("1.2.3.4")
    return ((x509.UnrecognizedExtension(oid, b"\x05\x00"), True),)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda ca: ca.certify(KEYS["ecdsa"], use=EK_USE), "another use"),
        (lambda ca: ca.certify(KEYS["ecdsa"], usage="key_encipherment"), "another use"),
        (lambda ca: ca.certify(KEYS["ecdsa"], usage=None), "another use"),
        (
            lambda ca: ca.certify(KEYS["ecdsa"], use=x509.oid.ExtendedKeyUsageOID.SERVER_AUTH),
            "another use",
        ),
        (lambda ca: ca.certify(KEYS["ecdsa"], use=AK_USE, ca=True), "of a CA"),
        (
            lambda ca: ca.certify(KEYS["ecdsa"], use=AK_USE, until=datetime(2026, 10, 31)),  # noqa: DTZ001
            "not valid now",
        ),
        (lambda ca: ca.certify(KEYS["ecdsa"], use=AK_USE, extra=policies_critical()), "critical"),
    ],
)
def test_a_certificate_that_leads_to_a_root_and_does_not_hold_is_refused(make, problem):
    ca = Ca()
    with pytest.raises(NotAuthentic, match=problem):
        verify(SoftwareAk().evidence(endorsements=[make(ca)]), believing(ca))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ca": False}, "may not issue"),
        ({"cert_sign": False}, "may not issue"),
        ({"until": datetime(2026, 10, 31)}, "not valid now"),  # noqa: DTZ001
    ],
)
def test_an_authority_that_is_none_is_refused(changes, problem):
    root = Ca("root")
    middle = Ca("middle", parent=root, **changes)
    leaf = middle.certify(KEYS["ecdsa"], use=AK_USE)
    with pytest.raises(NotAuthentic, match=problem):
        verify(SoftwareAk().evidence(endorsements=[leaf, middle.der]), believing(root))


def test_a_path_that_is_too_long_for_its_root_is_refused():
    root = Ca("root", path_length=0)
    middle = Ca("middle", parent=root)
    leaf = middle.certify(KEYS["ecdsa"], use=AK_USE)
    with pytest.raises(NotAuthentic, match="this long"):
        verify(SoftwareAk().evidence(endorsements=[leaf, middle.der]), believing(root))


def enrolling(ek, ca: Ca) -> Evidence:
    certificate = ca.certify(ek, use=EK_USE, usage="key_encipherment")
    return changed(SoftwareAk().evidence(), lambda m: m.update(ek_certificate=b64url(certificate)))


def test_an_enrolment_names_the_key_and_the_tpm():
    ca, ek = Ca(), ec.generate_private_key(ec.SECP256R1())
    asked = enrol(enrolling(ek, ca), believing(ca), random=lambda size: bytes(size))
    assert asked.platform == verify(SoftwareAk().evidence(), CONTEXT).platform
    assert asked.ek == fingerprint(ek.public_key())
    asked.confirm(bytes(32))


@pytest.mark.parametrize(
    "ek",
    [
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 4096),
        ec.generate_private_key(ec.SECP256K1()),
    ],
)
def test_an_endorsement_key_of_another_kind_is_refused(ek):
    ca = Ca()
    with pytest.raises(MalformedEvidence):
        enrol(enrolling(ek, ca), believing(ca))


def test_an_endorsement_key_that_the_library_does_not_know_is_refused():
    ca = Ca()
    certificate = with_oaep_key(ca.certify(rsa.generate_private_key(65537, 2048), use=EK_USE), ca.key)
    evidence = changed(
        SoftwareAk().evidence(), lambda members: members.update(ek_certificate=b64url(certificate))
    )
    with pytest.raises(MalformedEvidence, match="neither RSA nor ECC"):
        enrol(evidence, believing(ca))


def test_the_certificate_of_an_attestation_key_is_not_that_of_an_endorsement_key():
    ca, ek = Ca(), ec.generate_private_key(ec.SECP256R1())
    for use in (AK_USE, None):
        certificate = ca.certify(ek, use=use)
        evidence = changed(
            SoftwareAk().evidence(), lambda m, der=certificate: m.update(ek_certificate=b64url(der))
        )
        with pytest.raises(NotAuthentic, match="another use"):
            enrol(evidence, believing(ca))


def test_endorsements_that_are_no_certificates_are_refused():
    for endorsements in ([b"certificate"], [b"\x30\x03\x02\x01\x01"], [b"-----BEGIN CERTIFICATE-----"]):
        with pytest.raises(MalformedEvidence):
            verify(SoftwareAk().evidence(endorsements=endorsements), believing(Ca()))


def test_authorities_that_have_signed_each_other_cost_no_more_than_others():
    """Eight with one name and one key: tried in every order they would be 40320 ways."""
    one = Ca("loop")
    rest = [one._issue("loop", one.key.public_key(), [], UNTIL) for _ in range(7)]
    leaf = one.certify(KEYS["ecdsa"], use=AK_USE)
    endorsements = [leaf, *(certificate.public_bytes(Encoding.DER) for certificate in rest)]
    claims = verify(SoftwareAk().evidence(endorsements=endorsements), believing(Ca("root")))
    assert claims.values["ak_certified"] is False
    with pytest.raises(MalformedEvidence, match="more than 8"):
        verify(SoftwareAk().evidence(endorsements=[*endorsements, one.der]), believing(Ca("root")))


def test_a_key_in_software_can_say_anything_and_is_certified_by_nobody():
    """What the module says at its head: only the policy's list, or a certificate, makes a key worth something."""
    claims = verify(SoftwareAk().evidence(), believing(Ca()))
    assert claims.values["ak_certified"] is False
    assert claims.platform == f"ak:{claims.values['ak']}"
