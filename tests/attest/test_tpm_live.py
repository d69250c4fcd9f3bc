"""A real TPM (swtpm): quotes by the collector, enrolment, and what somebody who owns the machine may try."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from recorded import read
from software_ak import SoftwareAk
from swtpm import Tpm, TpmMaker, require_swtpm, switched_on

from strongroom.attest.appraise import appraise
from strongroom.attest.collect import open_collector, tpm_quote
from strongroom.attest.collect.tpm import TpmCollector
from strongroom.attest.evidence import Evidence
from strongroom.attest.requirements import parse_requirement
from strongroom.attest.requirements_values import Problems
from strongroom.attest.roots import production
from strongroom.attest.tpm_credential import enrol, make_credential
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.tpm_keys import parse_public
from strongroom.attest.verify import Context, verify
from strongroom.errors import (
    MalformedEvidence,
    MissingEndorsement,
    NotAuthentic,
    NotFound,
    Unavailable,
    UsageError,
)
from strongroom.format.encoding import b64url, unb64url_text

NOW = datetime.now(UTC)
BOUND = hashlib.sha256(b"challenge").digest()


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    require_swtpm()
    return TpmMaker(tmp_path_factory.mktemp("tpm"))


@pytest.fixture(scope="module")
def state(maker):
    return maker.make("one")


@pytest.fixture
def tpm(state, tmp_path):
    with switched_on(state, tmp_path) as running:
        yield running


@pytest.fixture
def other_tpm(maker, tmp_path):
    (tmp_path / "other").mkdir()
    with switched_on(maker.make(f"other-{tmp_path.name}"), tmp_path / "other") as running:
        yield running


def context(maker=None) -> Context:
    roots = production() if maker is None else replace(production(), tpm=(maker.issuer,), test=True)
    return Context(datetime.now(UTC), roots)


def collector(tpm: Tpm, **options) -> TpmCollector:
    return TpmCollector(tpm.tcti, **options)


def without(evidence: Evidence, *names: str, **members) -> Evidence:
    said = {name: value for name, value in json.loads(evidence.data).items() if name not in names}
    return replace(evidence, data=json.dumps(said | members).encode())


# Quotes


def test_a_quote_is_bound_and_says_what_the_pcrs_are(tpm):
    before = verify(collector(tpm).collect(BOUND), context())
    assert before.bound == BOUND
    assert before.values["pcr"]["16"] == "00" * 32
    assert set(before.values["pcr"]) == {str(index) for index in range(24)}
    tpm.extend(16, hashlib.sha256(b"event").digest())
    after = verify(collector(tpm).collect(BOUND), context())
    expected = hashlib.sha256(bytes(32) + hashlib.sha256(b"event").digest()).hexdigest()
    assert after.values["pcr"] == before.values["pcr"] | {"16": expected}


def test_a_quote_for_another_challenge_says_so(tpm):
    claims = verify(collector(tpm).collect(hashlib.sha256(b"old").digest()), context())
    assert claims.bound != BOUND


def test_values_of_before_do_not_go_with_a_quote_of_after(tpm):
    """Who has changed the machine sends the PCRs that it should have."""
    before = json.loads(collector(tpm).collect(BOUND).data)
    tpm.extend(7, hashlib.sha256(b"another boot loader").digest())
    after = collector(tpm).collect(BOUND)
    with pytest.raises(NotAuthentic, match="not those"):
        verify(without(after, pcrs=before["pcrs"]), context())


def test_the_bound_bytes_of_one_quote_do_not_go_with_another(tpm):
    old = json.loads(collector(tpm).collect(hashlib.sha256(b"old").digest()).data)
    new = collector(tpm).collect(BOUND)
    with pytest.raises(NotAuthentic, match="has not signed"):
        verify(without(new, signature=old["signature"]), context())


def test_the_key_is_the_same_each_time_and_after_a_restart(state, tmp_path):
    found = set()
    for run in range(2):
        (tmp_path / str(run)).mkdir()
        with switched_on(state, tmp_path / str(run)) as tpm:
            found |= {verify(collector(tpm).collect(BOUND), context()).platform for _ in range(2)}
    assert len(found) == 1


def test_another_tpm_has_another_key(tpm, other_tpm):
    platforms = {verify(collector(one).collect(BOUND), context()).platform for one in (tpm, other_tpm)}
    assert len(platforms) == 2


def test_no_key_is_left_in_the_tpm(tpm):
    """It has room for three: a fourth would fail."""
    for _ in range(5):
        collector(tpm).collect(BOUND)
        with pytest.raises(UsageError):
            collector(tpm).activate(b"no credential")
    assert tpm.tool("getcap", "handles-transient").strip() == ""


@pytest.mark.parametrize("bound", [b"", bytes(65)])
def test_nothing_or_too_much_cannot_be_bound(tpm, bound):
    with pytest.raises(UsageError, match="bound to 1 to 64 bytes"):
        collector(tpm).collect(bound)


def test_64_bytes_are_bound_as_they_are(tpm):
    assert verify(collector(tpm).collect(bytes(range(64))), context()).bound == bytes(range(64))


def test_a_pcr_that_changes_between_reading_and_quoting_is_read_again(tpm, monkeypatch):
    from tpm2_pytss import ESYS_TR

    original, changes = tpm_quote.read_pcrs, []

    def changing(connection):
        values = original(connection)
        if len(changes) < 2:
            changes.append(connection.pcr_event(ESYS_TR.PCR16, b"event"))
        return values

    monkeypatch.setattr(tpm_quote, "read_pcrs", changing)
    claims = verify(collector(tpm).collect(BOUND), context())
    assert claims.values["pcr"]["16"] != "00" * 32
    assert len(changes) == 2


def test_a_pcr_that_never_rests_is_an_error(tpm, monkeypatch):
    from tpm2_pytss import ESYS_TR

    original = tpm_quote.read_pcrs

    def changing(connection):
        values = original(connection)
        connection.pcr_event(ESYS_TR.PCR16, b"event")
        return values

    monkeypatch.setattr(tpm_quote, "read_pcrs", changing)
    with pytest.raises(Unavailable, match="faster"):
        collector(tpm).collect(BOUND)


def test_a_policy_takes_this_machine_in_this_state_alone(tpm, other_tpm):
    for one in (tpm, other_tpm):
        one.extend(7, hashlib.sha256(b"secure boot").digest())
    claims = verify(collector(tpm).collect(BOUND), context())
    policy = {"kind": "tpm", "platforms": [claims.platform], "pcr": {"7": [claims.values["pcr"]["7"]]}}
    requirement = parse_requirement(policy, "any[0]", Problems())
    assert requirement is not None

    def refused(one: Tpm) -> list[str]:
        found = appraise(requirement, verify(collector(one).collect(BOUND), context()), [], NOW)
        return [finding.path for finding in found if not finding.ok]

    assert refused(tpm) == []
    assert refused(other_tpm) == ["any[0].platforms"]
    tpm.extend(7, hashlib.sha256(b"another boot loader").digest())
    assert refused(tpm) == ["any[0].pcr.7"]


# Keys that are no attestation keys, made with tpm2-tools

PERSISTENT = 0x81010020
UNRESTRICTED = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|noda"
RESTRICTED = UNRESTRICTED + "|restricted"


def persistent_key(tpm: Tpm, folder, attributes: str, algorithm: str = "ecc256:ecdsa-sha256:null"):
    name = folder / "key.ctx"
    tpm._run("createprimary", "-C", "e", "-G", algorithm, "-a", attributes, "-c", str(name))
    tpm.tool("evictcontrol", "-C", "o", "-c", str(name), f"{PERSISTENT:#x}")


def test_a_key_that_is_not_restricted_is_refused_by_the_collector(tpm, tmp_path):
    persistent_key(tpm, tmp_path, UNRESTRICTED)
    with pytest.raises(UsageError, match="lacks restricted"):
        collector(tpm, key=PERSISTENT).collect(BOUND)


def test_a_quote_by_a_key_that_is_not_restricted_is_refused_by_the_verifier(tpm, tmp_path):
    """The key signs a quote that nobody has ever quoted; saying that it is restricted gives it another name."""
    persistent_key(tpm, tmp_path, UNRESTRICTED)
    good = TpmEvidence.parse(collector(tpm).collect(BOUND).data)
    # The owner's own quote: all PCRs as he likes them.
    wanted = dict.fromkeys(range(24), hashlib.sha256(b"as it should be").digest())
    digest = hashlib.sha256(b"".join(wanted.values())).digest()
    forged = good.message.replace(good.attest.pcr_digest, digest)
    (tmp_path / "forged").write_bytes(forged)
    tpm.tool("readpublic", "-c", f"{PERSISTENT:#x}", "-o", str(tmp_path / "public"))
    tpm.tool(
        *("sign", "-c", f"{PERSISTENT:#x}", "-g", "sha256", "-s", "ecdsa"),
        *("-o", str(tmp_path / "signature"), str(tmp_path / "forged")),
    )
    public, signature = (tmp_path / "public").read_bytes(), (tmp_path / "signature").read_bytes()
    evidence = TpmEvidence.build(public, forged, signature, {"sha256": wanted})
    with pytest.raises(NotAuthentic, match="lacks restricted"):
        verify(evidence, context())
    # He can lie about the attribute, and it passes as a key that nobody has listed; never as enrolled.
    lie = bytearray(public)
    lie[7] |= 1
    evidence = TpmEvidence.build(bytes(lie), forged, signature, {"sha256": wanted})
    claims = verify(evidence, context())
    assert claims.values["pcr"]["7"] == wanted[7].hex()
    assert claims.platform != verify(collector(tpm).collect(BOUND), context()).platform
    assert claims.values["ak_certified"] is False


def test_a_restricted_key_does_not_sign_a_quote_that_somebody_hands_to_it(tpm, tmp_path):
    """What the magic number is for: the TPM itself refuses."""
    persistent_key(tpm, tmp_path, RESTRICTED)
    (tmp_path / "forged").write_bytes(TpmEvidence.parse(collector(tpm).collect(BOUND).data).message)
    with pytest.raises(AssertionError, match=r"(?i)ticket|hash"):
        tpm.tool(
            *("sign", "-c", f"{PERSISTENT:#x}", "-g", "sha256", "-s", "ecdsa"),
            *("-o", str(tmp_path / "signature"), str(tmp_path / "forged")),
        )


@pytest.mark.parametrize(
    "algorithm", ["ecc256:ecdsa-sha256:null", "ecc384:ecdsa-sha384:null", "rsa2048:rsassa-sha256:null"]
)
def test_a_persistent_key_is_used(tpm, tmp_path, algorithm):
    persistent_key(tpm, tmp_path, RESTRICTED, algorithm)
    evidence = open_collector(f"tpm:{tpm.tcti};key={PERSISTENT:#x}").collect(BOUND)
    claims = verify(evidence, context())
    assert claims.bound == BOUND
    # Ours is made from the seed of the TPM and this template alone, whoever makes it.
    ours = verify(collector(tpm).collect(BOUND), context()).platform
    assert (claims.platform == ours) is (algorithm == "ecc256:ecdsa-sha256:null")


def test_a_decryption_key_is_refused(tpm):
    """0x81010001 is the endorsement key itself."""
    with pytest.raises(UsageError, match="attestation key"):
        collector(tpm, key=0x81010001).collect(BOUND)


def test_a_persistent_key_that_is_not_there(tpm):
    with pytest.raises(NotFound, match="no key at 0x81010077"):
        collector(tpm, key=0x81010077).collect(BOUND)


def test_quotes_of_tpm2_tools_verify(tpm, tmp_path):
    """Another implementation makes the key and the quote."""
    ek, ak = str(tmp_path / "ek.ctx"), str(tmp_path / "ak.ctx")
    tpm._run("createek", "-c", ek, "-G", "rsa")
    tpm._run("flushcontext", "--transient-object")
    tpm._run(
        "createak", "-C", ek, "-c", ak, "-G", "rsa", "-g", "sha256", "-s", "rsassa", "-u", ak + ".pub"
    )
    tpm._run("flushcontext", "--transient-object")
    tpm._run("flushcontext", "--loaded-session")
    tpm.tool(
        *("quote", "-c", ak, "-l", "sha256:0,7,16", "-q", BOUND.hex(), "-g", "sha256"),
        *("-m", ak + ".msg", "-s", ak + ".sig", "-o", ak + ".pcr", "-F", "values"),
    )
    parts = [(tmp_path / f"ak.ctx.{name}").read_bytes() for name in ("pub", "msg", "sig", "pcr")]
    values = {index: parts[3][32 * at : 32 * at + 32] for at, index in enumerate((0, 7, 16))}
    evidence = TpmEvidence.build(*parts[:3], {"sha256": values})
    claims = verify(evidence, context())
    assert claims.bound == BOUND
    assert set(claims.values["pcr"]) == {"0", "7", "16"}


# Enrolment


def test_a_key_is_enrolled_by_the_certificate_of_its_tpm(tpm, maker):
    evidence = collector(tpm).collect(BOUND)
    asked = enrol(evidence, context(maker))
    assert asked.platform == verify(evidence, context()).platform
    asked.confirm(collector(tpm).activate(asked.credential))
    assert asked._secret.hex() not in repr(asked)


def test_the_way_to_the_root_may_lead_over_endorsements(tpm, maker):
    evidence = collector(tpm).collect(BOUND)
    above = replace(context(), roots=replace(production(), tpm=(maker.root,)))
    with pytest.raises(NotAuthentic, match="leads to no CA"):
        enrol(evidence, above)
    asked = enrol(replace(evidence, endorsements=(maker.issuer,)), above)
    asked.confirm(collector(tpm).activate(asked.credential))


# libtpms stops altogether (TPM_RC_FAILURE) where RSA data are larger than its modulus.
NOT_OPENED = (UsageError, Unavailable)


def test_another_tpm_does_not_open_the_credential(tpm, other_tpm, maker):
    asked = enrol(collector(tpm).collect(BOUND), context(maker))
    with pytest.raises(NOT_OPENED, match=r"another TPM|0x101"):
        collector(other_tpm).activate(asked.credential)


def test_another_tpm_does_not_open_the_credential_for_a_curve(tpm, other_tpm, maker):
    for one in (tpm, other_tpm):
        one.tool("nvundefine", "-C", "p", "0x1c00002")
    asked = enrol(collector(tpm).collect(BOUND), context(maker))
    with pytest.raises(UsageError, match="another TPM"):
        collector(other_tpm).activate(asked.credential)


def test_a_certificate_of_another_tpm_enrols_nothing(tpm, other_tpm, maker):
    """The key of one machine with the certificate of another: neither TPM opens what it is asked."""
    certificate = json.loads(collector(other_tpm).collect(BOUND).data)["ek_certificate"]
    asked = enrol(without(collector(tpm).collect(BOUND), ek_certificate=certificate), context(maker))
    for one in (tpm, other_tpm):
        with pytest.raises(NOT_OPENED, match=r"another TPM|0x101"):
            collector(one).activate(asked.credential)


def test_a_key_in_software_is_not_enrolled_by_a_real_tpm(tpm, maker):
    """Its name is not that of any key that the TPM has."""
    certificate = json.loads(collector(tpm).collect(BOUND).data)["ek_certificate"]
    asked = enrol(without(SoftwareAk().evidence(BOUND), ek_certificate=certificate), context(maker))
    with pytest.raises(UsageError, match="another attestation key"):
        collector(tpm).activate(asked.credential)


def test_a_key_with_another_attribute_is_not_enrolled(tpm, maker):
    evidence = collector(tpm).collect(BOUND)
    public = bytearray(unb64url_text(json.loads(evidence.data)["ak_public"]))
    public[7] &= ~1
    with pytest.raises(NotAuthentic, match="lacks restricted"):
        enrol(without(evidence, ak_public=b64url(bytes(public))), context(maker))
    public[7] |= 1
    public[9] ^= 0x40  # userWithAuth: an attribute that nobody looks at, and yet another name
    asked = enrol(without(evidence, ak_public=b64url(bytes(public))), context(maker))
    with pytest.raises(UsageError, match="another attestation key"):
        collector(tpm).activate(asked.credential)


def test_no_changed_byte_of_a_credential_is_opened(tpm, maker):
    asked = enrol(collector(tpm).collect(BOUND), context(maker))
    for at in range(0, len(asked.credential), 9):
        bad = bytearray(asked.credential)
        bad[at] ^= 0x01
        with pytest.raises(NOT_OPENED):
            collector(tpm).activate(bytes(bad))
    for bad in (b"", asked.credential[:-1], asked.credential + b"\x00"):
        with pytest.raises(NOT_OPENED):
            collector(tpm).activate(bad)
    asked.confirm(collector(tpm).activate(asked.credential))


def test_another_answer_is_refused(tpm, maker):
    asked = enrol(collector(tpm).collect(BOUND), context(maker))
    for answer in (b"", bytes(32), asked._secret[:-1], asked._secret + b"\x00"):
        with pytest.raises(NotAuthentic, match="has not opened"):
            asked.confirm(answer)


def test_enrolment_needs_a_certificate_that_is_believed(tpm, maker):
    evidence = collector(tpm).collect(BOUND)
    with pytest.raises(NotAuthentic, match="leads to no CA"):
        enrol(evidence, context())
    with pytest.raises(MissingEndorsement):
        enrol(without(evidence, "ek_certificate"), context(maker))
    with pytest.raises(MissingEndorsement):
        enrol(Evidence("tpm", read("tpm/coco.json")), context(maker))
    with pytest.raises(MalformedEvidence):
        enrol(without(evidence, ek_certificate=b64url(b"none")), context(maker))


def test_the_issuer_of_certificates_is_no_endorsement_key(tpm, maker):
    issuer = x509.load_pem_x509_certificate(maker.issuer).public_bytes(Encoding.DER)
    evidence = without(collector(tpm).collect(BOUND), ek_certificate=b64url(issuer))
    above = replace(context(), roots=replace(production(), tpm=(maker.root,)))
    with pytest.raises(NotAuthentic, match="of a CA"):
        enrol(evidence, above)


def test_an_expired_certificate_is_refused(tpm, maker):
    late = replace(context(maker), now=datetime(2001, 1, 1, tzinfo=UTC))
    with pytest.raises(NotAuthentic, match="not valid now"):
        enrol(collector(tpm).collect(BOUND), late)


def test_an_endorsement_key_on_a_curve(tpm, maker):
    """Without the certificate for RSA, the one for P-384 counts: SHA-384, AES-256, a key of the high range."""
    tpm.tool("nvundefine", "-C", "p", "0x1c00002")
    evidence = collector(tpm).collect(BOUND)
    certificate = x509.load_der_x509_certificate(
        unb64url_text(json.loads(evidence.data)["ek_certificate"])
    )
    assert certificate.public_key().curve.name == "secp384r1"
    asked = enrol(evidence, context(maker))
    asked.confirm(collector(tpm).activate(asked.credential))


def test_a_tpm_without_a_certificate(tpm):
    for index in ("0x1c00002", "0x1c00016"):
        tpm.tool("nvundefine", "-C", "p", index)
    evidence = collector(tpm).collect(BOUND)
    assert "ek_certificate" not in json.loads(evidence.data)
    verify(evidence, context())
    with pytest.raises(NotFound, match="no certificate"):
        collector(tpm).activate(b"")


def test_tpm2_tools_open_our_credential(tpm, maker, tmp_path):
    """Another implementation of the other side, with a key below the endorsement key."""
    ek, ak = str(tmp_path / "ek.ctx"), str(tmp_path / "ak.ctx")
    tpm._run("createek", "-c", ek, "-G", "rsa")
    tpm._run("flushcontext", "--transient-object")
    tpm._run(
        "createak", "-C", ek, "-c", ak, "-G", "ecc", "-g", "sha256", "-s", "ecdsa", "-u", ak + ".pub"
    )
    tpm._run("flushcontext", "--transient-object")
    tpm._run("flushcontext", "--loaded-session")
    certificate = unb64url_text(json.loads(collector(tpm).collect(BOUND).data)["ek_certificate"])
    public = parse_public((tmp_path / "ak.ctx.pub").read_bytes())
    endorsement_key = x509.load_der_x509_certificate(certificate).public_key()
    blob = make_credential(endorsement_key, public, b"a secret of 32 bytes, as it says")
    # Their file: magic, version, then the same two structures.
    (tmp_path / "credential").write_bytes(bytes.fromhex("badcc0de00000001") + blob)
    session = str(tmp_path / "session")
    tpm._run("startauthsession", "--policy-session", "-S", session)
    tpm._run("policysecret", "-S", session, "-c", "e")
    tpm._run(
        *("activatecredential", "-c", ak, "-C", ek, "-i", str(tmp_path / "credential")),
        *("-o", str(tmp_path / "secret"), "-P", f"session:{session}"),
    )
    assert (tmp_path / "secret").read_bytes() == b"a secret of 32 bytes, as it says"


@pytest.mark.parametrize(
    ("algorithm", "name_hash"),
    [
        ("rsa2048:aes128cfb", "sha256"),
        ("rsa3072:aes256cfb", "sha384"),
        ("ecc256:aes128cfb", "sha256"),
        ("ecc384:aes256cfb", "sha384"),
        ("ecc521:aes256cfb", "sha512"),
    ],
)
def test_every_kind_of_endorsement_key_opens_our_credential(tpm, tmp_path, algorithm, name_hash):
    """Storage keys of the same hash and cipher as the EKs of the profile; a TPM makes no difference."""
    ek, ak = str(tmp_path / "ek.ctx"), str(tmp_path / "ak.ctx")
    tpm.tool("createprimary", "-C", "o", "-G", algorithm, "-g", name_hash, "-c", ek)
    tpm.tool("readpublic", "-c", ek, "-o", ek + ".pub")
    tpm.tool("createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", RESTRICTED, "-c", ak)
    tpm.tool("readpublic", "-c", ak, "-o", ak + ".pub")
    keys = [parse_public((tmp_path / f"{name}.ctx.pub").read_bytes()) for name in ("ek", "ak")]
    blob = make_credential(keys[0].key, keys[1], b"secret")
    (tmp_path / "credential").write_bytes(bytes.fromhex("badcc0de00000001") + blob)
    tpm.tool(
        *("activatecredential", "-c", ak, "-C", ek, "-i", str(tmp_path / "credential")),
        *("-o", str(tmp_path / "secret")),
    )
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_our_tpm_opens_the_credential_of_the_library(tpm):
    """tpm2-pytss makes one with the EK's public area; ours is made from the certificate alone."""
    from tpm2_pytss import TPM2B_NAME, TPM2B_PUBLIC
    from tpm2_pytss.utils import create_ek_template
    from tpm2_pytss.utils import make_credential as theirs

    evidence = TpmEvidence.parse(collector(tpm).collect(BOUND).data)
    assert evidence.public is not None
    assert evidence.ek_certificate is not None
    key = x509.load_der_x509_certificate(evidence.ek_certificate).public_key()

    def nothing(index):
        from tpm2_pytss.utils import NoSuchIndex

        raise NoSuchIndex(index)

    _, template = create_ek_template("EK-RSA2048", nothing)
    template.publicArea.unique.rsa = key.public_numbers().n.to_bytes(256, "big")
    blob, secret = theirs(
        TPM2B_PUBLIC(template.publicArea), b"secret", TPM2B_NAME(evidence.public.name)
    )
    assert collector(tpm).activate(blob.marshal() + secret.marshal()) == b"secret"


# Certificates in the TPM


def test_a_certificate_of_the_key_in_the_tpm_becomes_an_endorsement(tpm, tmp_path):
    certificate = read("tpm/ekcert.der")
    # Makers fill up the space behind it.
    (tmp_path / "nv").write_bytes(certificate.ljust(1600, b"\xff"))
    tpm.tool("nvdefine", "-C", "o", "-s", "1600", "0x1800001")
    tpm.tool("nvwrite", "-C", "o", "-i", str(tmp_path / "nv"), "0x1800001")
    evidence = open_collector(f"tpm:{tpm.tcti};certificate=0x1800001").collect(BOUND)
    assert evidence.endorsements == (certificate,)


@pytest.mark.parametrize("content", [None, b"\xff" * 64, b"\x30\x82\xff\xff" + bytes(60)])
def test_a_certificate_that_is_not_there_is_an_error(tpm, tmp_path, content):
    if content is not None:
        (tmp_path / "nv").write_bytes(content)
        tpm.tool("nvdefine", "-C", "o", "-s", str(len(content)), "0x1800001")
        tpm.tool("nvwrite", "-C", "o", "-i", str(tmp_path / "nv"), "0x1800001")
    with pytest.raises(NotFound, match="no certificate at 0x1800001"):
        collector(tpm, certificate=0x1800001).collect(BOUND)


# Machines where it cannot work


def test_a_tpm_without_the_bank_is_an_error(maker, tmp_path):
    with (
        switched_on(maker.make("sha384", banks="sha384"), tmp_path) as tpm,
        pytest.raises(UsageError, match="no PCRs in SHA-256") as caught,
    ):
        collector(tpm).collect(BOUND)
    assert "tpm2_pcrallocate" in (caught.value.hint or "")


def test_a_hierarchy_with_a_password_is_an_error_that_says_so(tpm):
    tpm.tool("changeauth", "-c", "e", "password")
    with pytest.raises(Unavailable, match="0x9a2") as caught:
        collector(tpm).collect(BOUND)
    assert "password" in (caught.value.hint or "")


def test_no_session_is_left_where_the_policy_of_the_endorsement_key_fails(tpm, maker, tmp_path):
    persistent_key(tpm, tmp_path, RESTRICTED)
    asked = enrol(collector(tpm, key=PERSISTENT).collect(BOUND), context(maker))
    assert collector(tpm, key=PERSISTENT).activate(asked.credential) == asked._secret
    tpm.tool("changeauth", "-c", "e", "password")
    with pytest.raises(Unavailable):
        collector(tpm, key=PERSISTENT).activate(asked.credential)
    for kind in ("handles-transient", "handles-loaded-session"):
        assert tpm.tool("getcap", kind).strip() == ""


def test_no_tpm_answers(tmp_path, capfd):
    with pytest.raises(Unavailable, match="No TPM answers"):
        TpmCollector(f"swtpm:path={tmp_path}/none").collect(BOUND)


def test_a_device_that_is_not_there(tmp_path):
    with pytest.raises(NotFound, match="has no TPM"):
        TpmCollector(f"device:{tmp_path}/tpmrm0").collect(BOUND)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_device_that_this_user_may_not_use():
    code = (
        "import os, sys; from strongroom.attest.collect.tpm_device import check_device\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: check_device(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error, error.hint)\n"
    )
    # pytest's own directories are root's alone.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        device = os.path.join(folder, "tpmrm0")
        os.close(os.open(device, os.O_CREAT | os.O_WRONLY, 0o600))
        done = subprocess.run([sys.executable, "-c", code, device], capture_output=True, text=True)
    assert "UsageError This user may not use" in done.stdout, done.stderr
    assert "group tss" in done.stdout
