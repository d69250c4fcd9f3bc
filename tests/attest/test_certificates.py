"""Chains, signatures, dates and revocation lists: each rule, against certificates made for it."""

from __future__ import annotations

import threading
import warnings
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from endless import endless
from recorded import read

from strongroom.attest.certificates import (
    check_authority,
    check_chain,
    check_crl,
    check_not_revoked,
    check_signed_by,
    check_validity,
    is_crl,
    load_certificate,
    load_certificates,
    load_crl,
    name_of,
)
from strongroom.attest.crl_numbers import crl_numbers
from strongroom.errors import EvidenceError, MalformedEvidence, NotAuthentic

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
RSA = rsa.generate_private_key(65537, 2048)
SHORT = rsa.generate_private_key(65537, 1024)
KEYS = {
    name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "high", "low", "leaf", "other")
}
PSS = padding.PSS(padding.MGF1(hashes.SHA384()), 48)


def usage(sign: bool = True, crl: bool = True) -> x509.KeyUsage:
    return x509.KeyUsage(not sign, False, False, False, False, sign, crl, False, False)


def subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def certificate(
    name,
    issuer,
    *,
    key=None,
    by=None,
    ca=True,
    length=None,
    sign=True,
    crl=True,
    begin=NOW - DAY,
    end=NOW + DAY,
    extensions=(),
    serial=None,
    digest=hashes.SHA256(),  # noqa: B008
    constraints=True,
    pss=None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject(name))
        .issuer_name(subject(issuer))
        .public_key((key or KEYS[name]).public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca, length if ca else None), True)
        builder = builder.add_extension(usage(sign and ca, crl and ca), True)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(by or KEYS[issuer], digest, rsa_padding=pss)


def chain(**changes):
    """Leaf, low, high, root; ``changes`` are arguments for one of them."""
    made = {
        "leaf": {"issuer": "low", "ca": False},
        "low": {"issuer": "high", "length": 0},
        "high": {"issuer": "root", "length": 1},
        "root": {"issuer": "root"},
    }
    return [certificate(name, **{**given, **changes.get(name, {})}) for name, given in made.items()]


def verify(certificates, crls=(), **more):
    leaf, *rest, root = certificates
    return check_chain(leaf, rest, root, NOW, crls, **more)


def crl(
    issuer="low", *, key=None, revoked=(), begin=NOW - DAY, end=NOW + DAY, extensions=(), digest=None
):
    builder = x509.CertificateRevocationListBuilder().issuer_name(subject(issuer)).last_update(begin)
    builder = builder.next_update(end)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begin)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key or KEYS[issuer], digest or hashes.SHA256())


def test_a_good_chain_holds_until_its_first_end():
    assert verify(chain()) == NOW + DAY
    assert verify(chain(low={"end": NOW + DAY / 2})) == NOW + DAY / 2
    assert verify(chain(root={"end": NOW + DAY / 3})) == NOW + DAY / 3
    leaf, _, _, root = chain(leaf={"issuer": "root"})
    assert check_chain(leaf, [], root, NOW) == NOW + DAY


@pytest.mark.parametrize("who", ["leaf", "low", "high", "root"])
def test_everything_in_a_chain_must_hold_now(who):
    for dates in (
        {"begin": NOW + timedelta(seconds=1)},
        {"begin": NOW - 2 * DAY, "end": NOW - timedelta(seconds=1)},
    ):
        with pytest.raises(NotAuthentic, match=f"{who} is not valid now"):
            verify(chain(**{who: dates}))
    assert verify(chain(**{who: {"end": NOW}})) == NOW
    assert verify(chain(**{who: {"begin": NOW}}))


@pytest.mark.parametrize("who", ["leaf", "low", "high"])
def test_every_signature_of_a_chain_counts(who):
    with pytest.raises(NotAuthentic, match=f"certificate {who} does not have the signature"):
        verify(chain(**{who: {"by": KEYS["other"]}}))
    with pytest.raises(NotAuthentic, match="was not issued by"):
        verify(
            chain(
                **{
                    who: {
                        "issuer": "other",
                        "by": KEYS[{"leaf": "low", "low": "high", "high": "root"}[who]],
                    }
                }
            )
        )


def test_another_root_of_the_same_name_is_refused():
    *rest, _ = chain()
    with pytest.raises(NotAuthentic, match="signature of root"):
        verify([*rest, certificate("root", "root", key=KEYS["other"], by=KEYS["other"])])


def test_the_signature_of_the_root_itself_proves_nothing():
    assert verify(chain(root={"by": KEYS["other"]}))


def test_an_order_that_is_wrong_is_refused():
    leaf, low, high, root = chain()
    for order in ([low, leaf, high], [high, low, leaf], [leaf, high, low], [leaf, high], [leaf, low]):
        with pytest.raises(NotAuthentic):
            verify([*order, root])


@pytest.mark.parametrize("who", ["low", "high", "root"])
@pytest.mark.parametrize("changes", [{"ca": False}, {"sign": False}, {"constraints": False}])
def test_only_authorities_issue(who, changes):
    with pytest.raises(NotAuthentic, match=f"certificate {who} (may not issue|is no authority)"):
        verify(chain(**{who: changes}))


@pytest.mark.parametrize("who", ["low", "high", "root"])
@pytest.mark.parametrize(
    ("basic", "allowed"), [(False, usage(sign=True)), (True, usage(sign=False)), (True, None)]
)
def test_an_authority_says_so_twice(who, basic, allowed):
    """Basic constraints and the use of the key: neither stands for the other."""
    extensions = [(x509.BasicConstraints(basic, None), True)]
    extensions += [(allowed, True)] if allowed else []
    with pytest.raises(NotAuthentic, match=f"certificate {who} (may not issue|is no authority)"):
        verify(chain(**{who: {"constraints": False, "extensions": extensions}}))


def test_a_chain_longer_than_allowed_is_refused():
    for changes in ({"high": {"length": 0}}, {"root": {"length": 1}}):
        with pytest.raises(NotAuthentic, match="this long"):
            verify(chain(**changes))
    assert verify(chain(root={"length": 2}))
    leaf, low, high, root = chain()
    with pytest.raises(NotAuthentic, match="more than 8"):
        check_chain(leaf, [low] * 9, root, NOW)
    assert high


def test_critical_extensions_that_nobody_looks_at_are_refused():
    oid = x509.ObjectIdentifier("1.2.3.4")
    strange = x509.UnrecognizedExtension(oid, b"\x05\x00")
    for who in ("leaf", "low", "high", "root"):
        with pytest.raises(NotAuthentic, match=r"1\.2\.3\.4"):
            verify(chain(**{who: {"extensions": [(strange, True)]}}))
        assert verify(chain(**{who: {"extensions": [(strange, False)]}}))
    assert verify(chain(leaf={"extensions": [(strange, True)]}), known=frozenset({oid}))
    with pytest.raises(NotAuthentic, match=r"1\.2\.3\.4"):
        verify(chain(low={"extensions": [(strange, True)]}), known=frozenset({oid}))
    names = x509.NameConstraints(permitted_subtrees=[x509.DNSName("x")], excluded_subtrees=None)
    with pytest.raises(NotAuthentic, match="critical"):
        verify(chain(high={"extensions": [(names, True)]}))


@pytest.mark.parametrize("pss", [None, PSS])
def test_rsa_signatures_of_both_forms_are_checked(pss):
    root = certificate("root", "root", key=RSA, by=RSA)
    good = certificate("leaf", "root", by=RSA, ca=False, digest=hashes.SHA384(), pss=pss)
    check_signed_by(good, root)
    der = bytearray(good.public_bytes(Encoding.DER))
    der[-1] ^= 1
    with pytest.raises(NotAuthentic, match="signature"):
        check_signed_by(load_certificate(bytes(der)), root)


def test_weak_keys_and_other_algorithms_are_refused():
    weak = certificate("root", "root", key=SHORT, by=SHORT)
    with pytest.raises(NotAuthentic, match="key that is not accepted"):
        check_signed_by(certificate("leaf", "root", by=SHORT), weak)
    edwards = ed25519.Ed25519PrivateKey.generate()
    root = certificate("root", "root", key=edwards, by=edwards, digest=None)
    with pytest.raises(NotAuthentic, match="hash that is not accepted"):
        check_signed_by(certificate("leaf", "root", by=edwards, digest=None), root)
    root = certificate("root", "root", key=RSA, by=RSA)
    with pytest.raises(NotAuthentic, match="hash that is not accepted"):
        check_signed_by(certificate("leaf", "root", by=RSA, digest=hashes.SHA224()), root)
    named = certificate("leaf", "root", by=RSA).public_bytes(Encoding.DER)
    sha256, sha1 = (bytes.fromhex("2a864886f70d0101") + last for last in (b"\x0b", b"\x05"))
    assert named.count(sha256) == 2
    with pytest.raises(NotAuthentic, match="hash that is not accepted"):
        check_signed_by(load_certificate(named.replace(sha256, sha1)), root)
    small = ec.generate_private_key(ec.SECP224R1())
    weak = certificate("root", "root", key=small, by=small)
    with pytest.raises(NotAuthentic, match="key that is not accepted"):
        check_signed_by(certificate("leaf", "root", by=small), weak)
    # Signed by RSA, and an issuer that is not.
    with pytest.raises(NotAuthentic):
        check_signed_by(certificate("leaf", "root", by=RSA), certificate("root", "root"))


# --- revocation lists -------------------------------------------------------------------------------


def test_revocation_is_looked_up_in_the_list_of_the_issuer():
    certificates = chain(leaf={"serial": 5}, low={"serial": 6}, high={"serial": 7})
    for issuer, own in (("low", 5), ("high", 6), ("root", 7)):
        assert verify(certificates, [crl(issuer)]) == NOW + DAY
        assert verify(certificates, [crl(issuer, end=NOW + DAY / 4)]) == NOW + DAY / 4
        assert verify(certificates, [crl(issuer, revoked=({5, 6, 7} - {own}))])
        with pytest.raises(NotAuthentic, match="has been revoked"):
            verify(certificates, [crl("low"), crl(issuer, revoked=[99, own])])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"end": NOW - timedelta(seconds=1), "begin": NOW - DAY}, "it ended"),
        ({"begin": NOW + timedelta(seconds=1)}, "it holds from"),
        ({"key": KEYS["other"]}, "signature of low"),
        ({"issuer": "other"}, "not in the chain"),
        ({"issuer": "leaf"}, "not in the chain"),
        ({"extensions": [(x509.DeltaCRLIndicator(1), True)]}, "does not cover everything"),
    ],
)
def test_lists_that_do_not_hold_are_refused(changes, reason):
    with pytest.raises(NotAuthentic, match=reason):
        verify(chain(), [crl(**changes)])


def test_a_list_without_an_end_is_refused():
    made = load_crl(endless(crl(), KEYS["low"]))
    assert made.next_update_utc is None
    with pytest.raises(NotAuthentic, match="does not say until when"):
        verify(chain(), [made])


def test_lists_that_cover_only_something_are_refused():
    def point(**changes):
        given = dict.fromkeys(
            (
                "only_contains_user_certs",
                "only_contains_ca_certs",
                "indirect_crl",
                "only_contains_attribute_certs",
            ),
            False,
        )
        where = [x509.UniformResourceIdentifier("http://crl.example")]
        full = {
            "full_name": where,
            "relative_name": None,
            "only_some_reasons": None,
            **given,
            **changes,
        }
        return crl(extensions=[(x509.IssuingDistributionPoint(**full), True)])

    assert verify(chain(), [point()])
    assert verify(chain(), [point(only_contains_ca_certs=True)])
    for partly in (
        {"only_contains_user_certs": True},
        {"indirect_crl": True},
        {"only_contains_attribute_certs": True},
        {"only_some_reasons": frozenset({x509.ReasonFlags.key_compromise})},
    ):
        with pytest.raises(NotAuthentic, match="does not cover everything"):
            verify(chain(), [point(**partly)])


def test_the_least_number_of_an_issuers_lists_counts():
    def numbered(number, issuer="low", key_id=b"1"):
        own = x509.AuthorityKeyIdentifier(key_id, None, None)
        extensions = [(own, False)]
        extensions += [(x509.CRLNumber(number), False)] if number is not None else []
        return crl(issuer, extensions=extensions)

    def found(*crls):
        return crl_numbers(crls, test_root=False)

    assert found(numbered(5), numbered(7)) == found(numbered(7), numbered(5)) == {"CN=low 31": 5}
    assert found(numbered(7), numbered(None)) == {"CN=low 31": 0}
    assert found(numbered(7), numbered(5, key_id=b"2")) == {"CN=low 31": 7, "CN=low 32": 5}
    assert found(numbered(2**158)) == {"CN=low 31": 2**158}
    assert found() == {}
    large = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.20"), b"\x02\x15\x01" + bytes(20))
    with pytest.raises(NotAuthentic, match="number of a revocation list"):
        found(crl(extensions=[(large, False)]))


def test_an_authority_that_may_not_issue_lists_is_refused():
    with pytest.raises(NotAuthentic, match="low may not issue revocation lists"):
        verify(chain(low={"crl": False}), [crl("low")])


def test_a_list_in_pem_and_der_is_told_from_a_certificate():
    made = crl()
    der, pem = made.public_bytes(Encoding.DER), made.public_bytes(Encoding.PEM)
    other = chain()[0]
    assert load_crl(der) == load_crl(pem) == load_crl(b"\n" + pem) == made
    assert [is_crl(data) for data in (der, pem, b"\n" + pem)] == [True] * 3
    for data in (
        other.public_bytes(Encoding.DER),
        other.public_bytes(Encoding.PEM),
        b"",
        b"x",
        der[:-1],
    ):
        assert not is_crl(data)
        with pytest.raises(MalformedEvidence):
            load_crl(data)
    with pytest.raises(MalformedEvidence, match="more than"):
        load_crl(b"0" * ((1 << 20) + 1))
    check_crl(made, chain()[1], NOW)
    check_not_revoked(other, made)


# --- parsing ----------------------------------------------------------------------------------------


def test_chains_come_as_pem_and_single_certificates_as_der():
    made = chain()
    pem = b"".join(one.public_bytes(Encoding.PEM) for one in made)
    assert list(load_certificates(pem)) == made
    assert load_certificates(made[0].public_bytes(Encoding.DER)) == (made[0],)
    with pytest.raises(MalformedEvidence, match="there are 4"):
        load_certificate(pem)
    assert name_of(made[0]) == "leaf"
    with pytest.raises(MalformedEvidence, match="more than 8"):
        load_certificates(pem * 3)
    with pytest.raises(MalformedEvidence, match="more than 8"):
        load_certificates(b"0" * 70000)
    for data in (b"", b"x", pem[:200], b"-----BEGIN NOTHING-----\n-----END NOTHING-----\n"):
        with pytest.raises(MalformedEvidence):
            load_certificates(data)


def test_whatever_byte_is_changed_an_error_of_our_own_comes_out_or_nothing():
    made = chain(leaf={"serial": 77})
    der = made[0].public_bytes(Encoding.DER)
    listed = crl(revoked=[5]).public_bytes(Encoding.DER)
    kept = set()
    for at in range(len(der)):
        for bit in range(8):
            changed = bytearray(der)
            changed[at] ^= 1 << bit
            try:
                verify([load_certificate(bytes(changed)), *made[1:]])
            except EvidenceError as error:
                assert str(error).isprintable()
            else:
                kept.add(at)
    # How many bits of the last byte of a signature count: the library takes 1 where that bit is zero.
    assert kept <= {len(der) - len(made[0].signature) - 1}
    kept = set()
    for at in range(len(listed)):
        for bit in range(8):
            changed = bytearray(listed)
            changed[at] ^= 1 << bit
            try:
                verify(made, [load_crl(bytes(changed))])
            except EvidenceError as error:
                assert str(error).isprintable()
            else:
                kept.add(at)
    assert kept <= {len(listed) - len(load_crl(listed).signature) - 1}


def test_the_serial_number_0_warns_nobody_in_any_thread():
    data = read("snp/milan_v2.vek")
    before = list(warnings.filters)
    failures = []

    def load():
        try:
            for _ in range(50):
                load_certificates.__wrapped__(data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert warnings.filters == before


def test_dates_have_both_their_ends():
    leaf = chain()[0]
    assert check_validity(leaf, leaf.not_valid_before_utc) == leaf.not_valid_after_utc
    assert check_validity(leaf, leaf.not_valid_after_utc) == leaf.not_valid_after_utc
    with pytest.raises(NotAuthentic, match="it holds from 2026-06-30"):
        check_validity(leaf, leaf.not_valid_before_utc - timedelta(microseconds=1))
    with pytest.raises(NotAuthentic, match="it ended 2026-07-02"):
        check_validity(leaf, leaf.not_valid_after_utc + timedelta(microseconds=1))


def test_extensions_that_cannot_be_read_are_refused_and_warn_nobody():
    # Extensions are parsed one after the other; one that cannot be read has them parsed anew each time.
    issuer = [x509.DirectoryName(subject("root"))]
    zero = x509.AuthorityKeyIdentifier(None, issuer, 0)
    broken = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.19"), b"\xff\xff")
    extensions = [(zero, False), (broken, True)]
    made = chain(low={"constraints": False, "extensions": extensions})
    low = load_certificate(made[1].public_bytes(Encoding.DER))
    with pytest.raises(NotAuthentic, match="cannot be read"):
        verify([made[0], low, *made[2:]])
    with pytest.raises(NotAuthentic, match="is no authority"):
        check_authority(low, 0)
    with pytest.raises(NotAuthentic, match="may not issue revocation lists"):
        check_crl(crl("low"), low, NOW)


def test_names_that_cannot_be_read_are_refused():
    der = chain()[0].public_bytes(Encoding.DER).replace(b"\x0c\x04leaf", b"\x0c\x04l\xff\xfff")
    with pytest.raises(MalformedEvidence, match="not a certificate"):
        load_certificate(der)
    # Such as one from an OCSP response.
    elsewhere = x509.load_der_x509_certificate(der)
    for judge in (
        lambda: name_of(elsewhere),
        lambda: check_validity(elsewhere, NOW + 9 * DAY),
        lambda: check_signed_by(elsewhere, chain()[1]),
        lambda: check_chain(elsewhere, chain()[1:3], chain()[3], NOW),
    ):
        with pytest.raises(EvidenceError):
            judge()
