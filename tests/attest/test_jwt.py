from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from nvidia_cases import Known
from recorded import MANIFEST, fixed_time, read

from strongroom.attest.evidence import Evidence
from strongroom.attest.jws_keys import _check_size
from strongroom.attest.limits import MAX_EVIDENCE
from strongroom.attest.roots import Issuer, production
from strongroom.attest.verify import Context, verify
from strongroom.errors import (
    EvidenceError,
    MalformedEvidence,
    MissingEndorsement,
    MissingExtra,
    NotAuthentic,
)
from strongroom.format.encoding import b64url
from strongroom.testing.authority import Authority
from strongroom.testing.tokens import TokenIssuer

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
NONCE = bytes(range(32))
NAME = "https://issuer.example"
GOOGLE = TokenIssuer(NAME, NOW)
GOOGLE_TOKEN = "tokens/gcp_confidential_space.jwt"


def context(*issuers: Issuer, now: datetime = NOW, endorsements=None) -> Context:
    roots = replace(production(), issuers=issuers or (GOOGLE.trusted(),), test=True)
    return Context(now, roots, endorsements)


def check(token: bytes, *issuers: Issuer, **more):
    return verify(Evidence("jwt", token), context(*issuers, **more))


def token(header=None, **claims) -> bytes:
    return GOOGLE.token({"eat_nonce": NONCE.hex()} | claims, header)


# The recorded token.


def google(**changes) -> Issuer:
    issuer = Issuer(
        "https://confidentialcomputing.googleapis.com",
        "z08381475938604996746",
        root=read("tokens/gcp_confidential_space_root.pem"),
    )
    return replace(issuer, **changes)


def recorded(issuer: Issuer, now: datetime | None = None, data: bytes | None = None):
    roots = replace(production(), issuers=[issuer])
    return verify(
        Evidence("jwt", data or read(GOOGLE_TOKEN)), Context(now or fixed_time(GOOGLE_TOKEN), roots)
    )


def test_confidential_space() -> None:
    expected = MANIFEST[GOOGLE_TOKEN]["expected"]
    claims = recorded(google())
    assert claims.bound.hex() == expected["eat_nonce"]
    assert claims.values["claims"]["hwmodel"] == expected["hwmodel"]
    assert claims.values["profile"].startswith("https://cloud.google.com/")
    assert claims.not_after == datetime(2025, 9, 5, 9, 17, 30, tzinfo=UTC)
    assert not claims.debug
    assert not claims.faults
    assert not claims.test_root
    assert claims.platform.startswith("jwt:")
    assert len(claims.digest) == 32


@pytest.mark.parametrize("minutes", [-60, 60])
def test_confidential_space_at_other_times(minutes: int) -> None:
    with pytest.raises(NotAuthentic, match=r"expired|future"):
        recorded(google(), fixed_time(GOOGLE_TOKEN) + timedelta(minutes=minutes))


@pytest.mark.parametrize(
    "changes",
    [
        {"audience": "another"},
        {"audience": ""},
        {"issuer": "https://confidentialcomputing.googleapis.com/"},
        {"algorithms": ("ES256",)},
        {"algorithms": ()},
        {"root": None, "jwks": GOOGLE.jwks},
        {"root": GOOGLE.root},
        {"root": production().nvidia_device},
    ],
)
def test_confidential_space_for_another_configuration(changes: dict) -> None:
    with pytest.raises(NotAuthentic):
        recorded(google(**changes))


def test_every_part_of_a_recorded_token_is_signed() -> None:
    good = read(GOOGLE_TOKEN).strip()
    for at in range(0, len(good), 61):
        bad = bytearray(good)
        bad[at] = ord("A") if bad[at] != ord("A") else ord("B")
        with pytest.raises(EvidenceError):
            recorded(google(), data=bytes(bad))


def test_the_unsigned_local_result_is_refused() -> None:
    """What NVIDIA's tool writes on the attester itself: alg none, in the detached form."""
    document = json.loads(read("tokens/nvidia_local_eat_alg_none.json"))
    detached = json.dumps(document["detached_eat"]).encode()
    overall = document["detached_eat"][0][1]
    payload = json.loads(base64.urlsafe_b64decode(overall.split(".")[1] + "=="))
    at = datetime.fromtimestamp(payload["iat"] + 5, UTC)
    issuer = Issuer(payload["iss"], "", jwks=GOOGLE.jwks, algorithms=("none", "ES384", "HS256"))
    for data in (detached, overall.encode()):
        with pytest.raises(EvidenceError, match=r"algorithm|token"):
            check(data, issuer, now=at)
    with pytest.raises(NotAuthentic, match="public-key algorithm"):
        check(overall.encode(), issuer, now=at)


# Synthetic tokens.


@pytest.mark.parametrize("by_root", [False, True])
def test_by_key_set_and_by_root(by_root: bool) -> None:
    header = {"x5c": GOOGLE.x5c()} if by_root else {}
    claims = check(token(header), GOOGLE.trusted(by_root=by_root))
    assert claims.bound == NONCE
    assert claims.test_root
    assert claims.not_after == NOW + timedelta(seconds=300)
    assert claims.values["issuer"] == NAME


def test_key_set_from_a_source() -> None:
    source = Known({("jwks", NAME): GOOGLE.jwks})
    issuer = Issuer(NAME, "test-server")
    assert check(token(), issuer, endorsements=source).bound == NONCE
    with pytest.raises(MissingEndorsement):
        check(token(), issuer)
    with pytest.raises(MissingEndorsement):
        check(token(), issuer, endorsements=Known({}))
    other = TokenIssuer(NAME, NOW)
    with pytest.raises(NotAuthentic):
        check(token(), issuer, endorsements=Known({("jwks", NAME): other.jwks}))


def test_without_joserfc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joserfc.jwk", None)
    with pytest.raises(MissingExtra, match="packages"):
        check(token())


def test_nobody_is_believed_by_default() -> None:
    with pytest.raises(NotAuthentic, match="not believed"):
        verify(Evidence("jwt", token()), Context(NOW, production()))


@pytest.mark.parametrize("aud", ["another", ["another"], [], None, 7, {"test-server": 1}, ["x", None]])
def test_other_audiences(aud) -> None:
    with pytest.raises(NotAuthentic, match="audience"):
        check(token(aud=aud))


def test_one_of_several_audiences() -> None:
    assert check(token(aud=["other", "test-server"])).bound == NONCE


def test_an_issuer_without_audiences() -> None:
    """As NRAS and Trustee are: their tokens have no aud, and one that has is for somebody else."""
    issuer = replace(GOOGLE.trusted(), audience="")
    assert check(token(aud=None), issuer).bound == NONCE
    for aud in ("", "test-server", [], [""]):
        with pytest.raises(NotAuthentic, match="audience"):
            check(token(aud=aud), issuer)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int(NOW.timestamp()) - 31},
        {"exp": int(NOW.timestamp()) - 30},  # the first moment at which it does not hold
        {"exp": 0},
        {"exp": None},
        {"nbf": int(NOW.timestamp()) + 31},
        {"iat": int(NOW.timestamp()) + 31},
    ],
)
def test_times(claims: dict) -> None:
    with pytest.raises(NotAuthentic):
        check(token(**claims))


@pytest.mark.parametrize("value", ["1", [1], True, 1e300, -1e300, {"a": 1}])
@pytest.mark.parametrize("name", ["exp", "iat", "nbf"])
def test_times_that_are_none(name: str, value) -> None:
    with pytest.raises(MalformedEvidence, match=name):
        check(token(**{name: value}))


def test_a_clock_may_be_off_by_seconds() -> None:
    assert check(token(exp=int(NOW.timestamp()) - 29, nbf=int(NOW.timestamp()) + 30))
    assert check(token(nbf=int(NOW.timestamp()) + 20, iat=NOW.timestamp() + 20.5))


@pytest.mark.parametrize("issuer", [None, "", 7, NAME + "/", NAME.upper(), [NAME]])
def test_other_issuers(issuer) -> None:
    with pytest.raises(NotAuthentic, match="not believed"):
        check(token(iss=issuer))


def hs256(key: bytes, algorithm: str = "HS256", **header) -> bytes:
    head = {"alg": algorithm, "kid": "one"} | header
    moment = int(NOW.timestamp())
    body = {"iss": NAME, "aud": "test-server", "exp": moment + 60, "eat_nonce": NONCE.hex()}
    said = b".".join(b64url(json.dumps(part).encode()).encode() for part in (head, body))
    return said + b"." + b64url(hmac.new(key, said, "sha256").digest()).encode()


def test_a_public_key_is_no_shared_secret() -> None:
    """The classical confusion, with every spelling of the key, and an issuer that would allow it."""
    public = GOOGLE._signer.key.public_key()
    spellings = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        GOOGLE.jwks,
        b"",
    ]
    loose = replace(GOOGLE.trusted(), algorithms=("HS256", "ES384", "none"))
    for key in spellings:
        for issuer in (GOOGLE.trusted(), loose):
            with pytest.raises(NotAuthentic, match="algorithm"):
                check(hs256(key), issuer)


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "", "HS512", "ES256K", "RS1", None, 7])
def test_other_algorithms(algorithm) -> None:
    unsigned = hs256(b"", algorithm).rsplit(b".", 1)[0] + b"."
    loose = replace(GOOGLE.trusted(), algorithms=("none", "None", "nOnE", "", "HS512", "ES256K", "RS1"))
    for data in (unsigned, hs256(b"k", algorithm)):
        with pytest.raises(NotAuthentic, match="algorithm"):
            check(data, loose)


def test_an_octet_key_in_a_key_set_is_no_key() -> None:
    jwks = json.dumps({"keys": [{"kty": "oct", "kid": "one", "k": b64url(b"secret")}]}).encode()
    with pytest.raises(NotAuthentic):
        check(hs256(b"secret"), Issuer(NAME, "test-server", jwks=jwks, algorithms=("HS256",)))
    with pytest.raises(NotAuthentic, match="no such key"):
        check(token(), Issuer(NAME, "test-server", jwks=jwks))


def test_keys_in_the_header_are_not_looked_at() -> None:
    thief = TokenIssuer(NAME, NOW)
    claims = {"eat_nonce": NONCE.hex()}
    for header in (
        {"jwk": thief.jwk()},
        {"jku": "https://thief.example/jwks.json"},
        {"x5u": "https://thief.example/chain.pem"},
        {"x5c": thief.x5c()},
        {"jwk": thief.jwk(), "jku": "https://thief.example/", "x5c": thief.x5c(), "kid": None},
    ):
        for issuer in (GOOGLE.trusted(), GOOGLE.trusted(by_root=True)):
            with pytest.raises(NotAuthentic):
                check(thief.token(claims, header), issuer)
    # As Azure's have: it is there, and changes nothing.
    assert check(token({"jku": "https://issuer.example/certs"})).bound == NONCE


def test_another_kid_or_none() -> None:
    with pytest.raises(NotAuthentic, match="no such key"):
        check(token({"kid": "two"}))
    with pytest.raises(NotAuthentic, match="no such key"):
        check(token({"kid": 1}))
    assert check(token({"kid": None})).bound == NONCE
    two = json.dumps({"keys": [GOOGLE.jwk(), GOOGLE.jwk() | {"kid": "two"}]}).encode()
    both = Issuer(NAME, "test-server", jwks=two)
    assert check(token(), both).bound == NONCE
    with pytest.raises(NotAuthentic, match="no such key"):
        check(token({"kid": None}), both)
    twice = json.dumps({"keys": [GOOGLE.jwk(), GOOGLE.jwk()]}).encode()
    with pytest.raises(NotAuthentic, match="no such key"):
        check(token(), Issuer(NAME, "test-server", jwks=twice))


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"alg": "ES256"},
        {"crv": "P-256"},
        {"kty": "RSA"},
        {"x": "AAAA"},
        {"x": None},
        {"y": 7},
        {"x": b64url(bytes(48))},
    ],
)
def test_keys_that_do_not_fit(changes: dict) -> None:
    jwks = json.dumps({"keys": [GOOGLE.jwk() | changes]}).encode()
    with pytest.raises(NotAuthentic):
        check(token(), Issuer(NAME, "test-server", jwks=jwks))


@pytest.mark.parametrize("jwks", [b"", b"{}", b"[]", b'{"keys":[]}', b'{"keys":{}}', b'{"keys":[1]}'])
def test_key_sets_that_are_none(jwks: bytes) -> None:
    with pytest.raises(NotAuthentic):
        check(token(), Issuer(NAME, "test-server", jwks=jwks))


def test_a_large_key_set_is_refused() -> None:
    jwks = json.dumps({"keys": [GOOGLE.jwk()] * 65}).encode()
    with pytest.raises(NotAuthentic, match="not usable"):
        check(token(), Issuer(NAME, "test-server", jwks=jwks))


def rs256(bits: int) -> tuple[bytes, Issuer]:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    key = rsa.generate_private_key(65537, bits)
    numbers = key.public_key().public_numbers()
    jwk = {
        "kty": "RSA",
        "kid": "one",
        "n": b64url(numbers.n.to_bytes(bits // 8)),
        "e": b64url(numbers.e.to_bytes(3)),
    }
    said = hs256(b"", "RS256").rsplit(b".", 1)[0]
    signature = key.sign(said, padding.PKCS1v15(), hashes.SHA256())
    jwks = json.dumps({"keys": [jwk]}).encode()
    return said + b"." + b64url(signature).encode(), Issuer(NAME, "test-server", jwks=jwks)


def test_short_rsa_keys_are_refused() -> None:
    assert check(*rs256(2048)).bound == NONCE
    for bits in (1024, 2040):
        with pytest.raises(NotAuthentic, match=r"too short|not usable"):
            check(*rs256(bits))


def test_keys_fit_their_algorithm_whatever_the_library_thinks() -> None:
    own = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    for algorithm, right in own.items():
        for curve in (*own.values(), ec.SECP256K1(), ec.BrainpoolP256R1()):
            public = ec.generate_private_key(curve).public_key()
            if curve is right:
                _check_size(public, algorithm)
                continue
            with pytest.raises(NotAuthentic, match="does not fit"):
                _check_size(public, algorithm)
    _check_size(rsa.generate_private_key(65537, 2048).public_key(), "RS256")
    with pytest.raises(NotAuthentic, match="too short"):
        _check_size(rsa.generate_private_key(65537, 2040).public_key(), "RS256")


_ALGORITHMS = [
    *(f"{family}{size}" for family in ("RS", "PS") for size in (256, 384, 512)),
    *("ES256", "ES384", "ES512"),
]


@pytest.mark.parametrize("algorithm", _ALGORITHMS)
def test_each_algorithm(algorithm: str) -> None:
    """Signed here by joserfc, and verified; a key of another algorithm does not do."""
    from joserfc import jws
    from joserfc.jwk import ECKey, RSAKey

    curves = {"ES256": "P-256", "ES384": "P-384", "ES512": "P-521"}
    key = ECKey.generate_key(curves[algorithm]) if algorithm in curves else RSAKey.generate_key(2048)
    claims = {"iss": NAME, "aud": "test-server", "exp": int(NOW.timestamp()) + 60}
    header = {"alg": algorithm, "kid": "one"}
    data = jws.serialize_compact(
        header, json.dumps(claims | {"eat_nonce": NONCE.hex()}).encode(), key, [algorithm]
    ).encode()
    jwks = json.dumps({"keys": [key.as_dict(private=False) | {"kid": "one"}]}).encode()
    issuer = Issuer(NAME, "test-server", jwks=jwks, algorithms=(algorithm,))
    assert check(data, issuer).bound == NONCE
    with pytest.raises(NotAuthentic, match="algorithm"):
        check(data, replace(issuer, algorithms=tuple({*_ALGORITHMS} - {algorithm})))
    with pytest.raises(NotAuthentic, match="signature"):
        check(data[:-8] + b"AAAAAAAA", issuer)


def test_a_private_key_in_a_key_set_is_used_as_public() -> None:
    private = GOOGLE._signer.key.private_numbers().private_value
    jwk = GOOGLE.jwk() | {"d": b64url(private.to_bytes(48)), "key_ops": ["sign"]}
    jwks = json.dumps({"keys": [jwk]}).encode()
    assert check(token(), Issuer(NAME, "test-server", jwks=jwks)).bound == NONCE


@pytest.mark.parametrize("header", [{"crit": ["b64"], "b64": False}, {"crit": []}, {"b64": True}])
def test_extensions_are_refused(header: dict) -> None:
    with pytest.raises(NotAuthentic, match="extension"):
        check(token(header))


@pytest.mark.parametrize("days", [-2, 400])
def test_certificates_of_the_signer_must_hold(days: int) -> None:
    moment = int((NOW + timedelta(days=days)).timestamp())
    late = token({"x5c": GOOGLE.x5c()}, exp=moment + 60, iat=moment, nbf=moment)
    with pytest.raises(NotAuthentic, match="not valid now"):
        check(late, GOOGLE.trusted(by_root=True), now=NOW + timedelta(days=days))


def test_claims_end_with_the_certificates() -> None:
    long = token({"x5c": GOOGLE.x5c()}, exp=int(NOW.timestamp()) + 10 * 365 * 86400)
    assert check(long, GOOGLE.trusted(by_root=True)).not_after == NOW + timedelta(days=365)


@pytest.mark.parametrize("x5c", [None, [], "AAAA", ["!"], [7], ["AAAA"], [""] * 9])
def test_chains_that_are_none(x5c) -> None:
    with pytest.raises(EvidenceError):
        check(token({"x5c": x5c}), GOOGLE.trusted(by_root=True))


def test_a_chain_under_another_root_of_the_same_name() -> None:
    since, until = NOW - timedelta(days=1), NOW + timedelta(days=1)
    root = Authority.make("TEST token root", since, until)
    leaf = Authority.make("TEST token signer", since, until, root, ca=False)
    x5c = [
        base64.b64encode(one.certificate.public_bytes(Encoding.DER)).decode() for one in (leaf, root)
    ]
    forged = GOOGLE.token({"eat_nonce": NONCE.hex()}, {"x5c": x5c}, key=leaf.key)
    with pytest.raises(NotAuthentic):
        check(forged, GOOGLE.trusted(by_root=True))
    # The real chain, and a signature of somebody else.
    borrowed = GOOGLE.token({"eat_nonce": NONCE.hex()}, {"x5c": GOOGLE.x5c()}, key=leaf.key)
    with pytest.raises(NotAuthentic, match="signature"):
        check(borrowed, GOOGLE.trusted(by_root=True))


# What a token is bound to.


@pytest.mark.parametrize(
    ("nonce", "bound"),
    [
        (NONCE.hex(), NONCE),
        (NONCE.hex().upper(), NONCE),
        (b64url(NONCE), NONCE),
        ([b64url(NONCE)], NONCE),
        (["short", NONCE.hex(), bytes(32).hex()], NONCE),
        (None, b""),
        ("", b""),
        (b64url(NONCE) + "=", b""),
        (NONCE.hex()[:-2], b""),
        (b64url(NONCE)[:-1] + "9", b""),
        (["x"] * 16 + [NONCE.hex()], b""),
        ({"a": NONCE.hex()}, b""),
        (7, b""),
        ([[NONCE.hex()]], b""),
    ],
)
def test_nonces(nonce, bound: bytes) -> None:
    claims = check(token(eat_nonce=nonce))
    assert claims.bound == bound
    assert bool(claims.faults) == (bound == b"")


# What a token says against a machine.


@pytest.mark.parametrize(
    ("claims", "debug"),
    [
        ({"dbgstat": "disabled"}, False),
        ({"dbgstat": "disabled-since-boot"}, False),
        ({"dbgstat": 2}, False),
        ({"dbgstat": "enabled"}, True),
        ({"dbgstat": 0}, True),
        ({"dbgstat": True}, True),
        ({"dbgstat": ["disabled"]}, True),
        ({"dbgstat": None}, False),
        ({"submods": {"a": [{"dbgstat": "enabled"}]}}, True),
        ({"x-ms-isolation-tee": {"x-ms-sevsnpvm-is-debuggable": True}}, True),
        ({"x-ms-isolation-tee": {"x-ms-sevsnpvm-is-debuggable": False}}, False),
        ({"tdx": {"tdx_is_debuggable": "yes"}}, True),
        ({"is-debuggable": True}, True),
        ({"tdx": {"td_attributes": {"debug": True}}}, True),
        ({"tdx": {"td_attributes": {"debug": False}}}, False),
        ({"snp": {"policy_debug_allowed": 1}}, True),
        ({"snp": {"policy_debug_allowed": 0}}, False),
        ({"body": {"attributes.flags": "0500000000000000"}}, False),
        ({"body": {"attributes.flags": "0700000000000000"}}, True),
        ({"body": {"attributes.flags": "?"}}, True),
        ({"body": {"attributes.flags": ""}}, True),
    ],
)
def test_debug(claims: dict, debug: bool) -> None:
    assert check(token(**claims)).debug is debug


def test_trustees_recorded_result() -> None:
    """The payload of an EAR, signed here: an SGX enclave in debug mode, which Trustee did not like."""
    payload = json.loads(read("trustee/example.ear.json"))
    issuer = TokenIssuer("CoCo-Attestation-Service", datetime.fromtimestamp(payload["iat"], UTC), "")
    claims = check(
        issuer.token(payload | {"nbf": None, "eat_nonce": b64url(NONCE)}),
        issuer.trusted(),
        now=issuer.now,
    )
    assert claims.values["profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert claims.values["claims"]["submods"]["cpu0"]["ear.status"] == "contraindicated"
    assert claims.debug
    assert claims.faults == ["The issuer found the machine to be contraindicated."]


def test_affirmed() -> None:
    assert not check(token(submods={"cpu0": {"ear.status": "affirming"}})).faults


def test_numbers_and_names_of_a_token_can_be_hashed() -> None:
    claims = check(token(a=1.5, b=2.0, c=1 << 60, d=[{"e": True}], text="é"))
    found = claims.values["claims"]
    assert (found["a"], found["b"], found["c"]) == ("1.5", 2, str(1 << 60))
    assert found["d"] == [{"e": True}]
    assert len(claims.digest) == 32
    with pytest.raises(MalformedEvidence, match="not ASCII"):
        check(token(é=1))


# NVIDIA's detached form.

GPU = {"eat_nonce": NONCE.hex(), "measres": "success", "dbgstat": "disabled", "ueid": "1"}
OVERALL = {"eat_nonce": NONCE.hex(), "x-nvidia-overall-att-result": True, "sub": "NVIDIA-PLATFORM"}


def test_detached() -> None:
    data = GOOGLE.detached({"GPU-0": GPU, "GPU-1": GPU | {"ueid": "2"}}, OVERALL)
    claims = check(data)
    assert claims.values["profile"] == "nras"
    assert claims.values["submodules"]["GPU-1"]["ueid"] == "2"
    assert claims.bound == NONCE
    assert not claims.faults
    assert not claims.debug
    # The subject is that of every machine; what names this one is its GPUs.
    assert claims.platform != check(GOOGLE.detached({"GPU-0": GPU | {"ueid": "3"}}, OVERALL)).platform
    assert check(GOOGLE.detached({"GPU-0": GPU | {"ueid": None}}, OVERALL)).platform is None


@pytest.mark.parametrize(
    ("gpu", "overall", "fault"),
    [
        ({}, {"x-nvidia-overall-att-result": False}, "in order"),
        ({}, {"x-nvidia-overall-att-result": "true"}, "in order"),
        ({"measres": "fail"}, {}, "measurements"),
        ({"measres": {"a": 1}}, {}, "measurements"),
    ],
)
def test_detached_verdicts_of_no(gpu: dict, overall: dict, fault: str) -> None:
    claims = check(GOOGLE.detached({"GPU-0": GPU | gpu}, OVERALL | overall))
    assert any(fault in one for one in claims.faults)


def test_detached_debug() -> None:
    assert check(GOOGLE.detached({"GPU-0": GPU | {"dbgstat": "enabled"}}, OVERALL)).debug


def test_detached_parts_belong_together() -> None:
    good = json.loads(GOOGLE.detached({"GPU-0": GPU, "GPU-1": GPU | {"ueid": "2"}}, OVERALL))
    parts = good[1]

    def with_parts(**parts: str) -> bytes:
        return json.dumps([good[0], parts]).encode()

    names = {"GPU-0": parts["GPU-0"], "GPU-1": parts["GPU-1"]}
    assert check(with_parts(**names))
    other = GOOGLE.token(GPU | {"ueid": "9"}).decode()
    for bad in (
        {"GPU-0": parts["GPU-0"]},
        {**names, "GPU-2": other},
        {**names, "GPU-1": other},
        {"GPU-0": parts["GPU-1"], "GPU-1": parts["GPU-0"]},
    ):
        with pytest.raises(NotAuthentic, match="digests"):
            check(with_parts(**bad))
    for submods in (None, [], {"GPU-0": "x"}, {"GPU-0": ["DIGEST", ["MD5", "00"]]}):
        overall = GOOGLE.token(OVERALL | {"submods": submods}).decode()
        with pytest.raises(NotAuthentic, match="digests"):
            check(json.dumps([["JWT", overall], {"GPU-0": parts["GPU-0"]}]).encode())
    with pytest.raises(NotAuthentic, match="one nonce"):
        check(GOOGLE.detached({"GPU-0": GPU | {"eat_nonce": bytes(32).hex()}}, OVERALL))


def test_a_detached_part_of_somebody_else() -> None:
    thief = TokenIssuer(NAME, NOW)
    part = thief.token(GPU)
    digest = ["DIGEST", ["SHA-256", hashlib.sha256(part).hexdigest()]]
    overall = GOOGLE.token(OVERALL | {"submods": {"GPU-0": digest}}).decode()
    with pytest.raises(NotAuthentic, match="signature"):
        check(json.dumps([["JWT", overall], {"GPU-0": part.decode()}]).encode())


def test_a_detached_token_ends_with_the_first_of_its_parts() -> None:
    soon = int(NOW.timestamp()) + 60
    for part, overall in ((soon, soon + 60), (soon + 60, soon)):
        data = GOOGLE.detached({"GPU-0": GPU | {"exp": part}}, OVERALL | {"exp": overall})
        assert check(data).not_after == NOW + timedelta(seconds=60)


def test_a_detached_part_of_another_issuer_that_is_believed_too() -> None:
    other = TokenIssuer("https://other.example", NOW)
    part = other.token(GPU)
    digest = ["DIGEST", ["SHA-256", hashlib.sha256(part).hexdigest()]]
    overall = GOOGLE.token(OVERALL | {"submods": {"GPU-0": digest}}).decode()
    data = json.dumps([["JWT", overall], {"GPU-0": part.decode()}]).encode()
    with pytest.raises(NotAuthentic, match="of several issuers"):
        check(data, GOOGLE.trusted(), other.trusted())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"..",
        b"a.b.c",
        b"e30.e30.",
        b"e30.e30.AA.AA",
        b"[]",
        b"[[],{}]",
        b'[["JWT"],{}]',
        b'[["JWT","a.b.c"],{}]',
        b'[["JWT","a.b.c"],{"a":7}]',
        b'[["JWT",7],{"a":"b"}]',
        b'[["XXX","a.b.c"],{"a":"a.b.c"}]',
        b'[["JWT","a.b.c"],{"a":"a.b.c","a":"a.b.c"}]',
        b'[["JWT","a.b.c"],{"a":"a.b.c"}],"token":1,"x":[1',
        b"[" * 5000,
        b"\xff.\xff.\xff",
    ],
)
def test_malformed(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        check(data)


def test_duplicate_members_are_refused() -> None:
    body = b'{"iss":"%s","iss":"x","aud":"test-server","exp":9999999999}' % NAME.encode()
    said = b64url(b'{"alg":"ES384","kid":"one"}').encode() + b"." + b64url(body).encode()
    with pytest.raises(MalformedEvidence):
        check(said + b"." + b64url(GOOGLE._signer.sign(said)).encode())


def test_size_is_bounded() -> None:
    with pytest.raises(MalformedEvidence, match="more than"):
        check(b"a" * (MAX_EVIDENCE + 1))


def test_padded_and_standard_base64_are_refused() -> None:
    good = token()
    head, body, signature = good.split(b".")
    for bad in (
        head + b"=." + body + b"." + signature,
        good + b"=",
        head + b" ." + body + b"." + signature,
    ):
        with pytest.raises(EvidenceError):
            check(bad)


def test_an_ec_key_for_another_curve_in_the_chain() -> None:
    since, until = NOW - timedelta(days=1), NOW + timedelta(days=1)
    root = Authority.make("root", since, until)
    key = ec.generate_private_key(ec.SECP384R1())
    leaf = replace(Authority.make("leaf", since, until, root, ca=False), key=key)
    x5c = [base64.b64encode(leaf.certificate.public_bytes(Encoding.DER)).decode()]
    data = GOOGLE.token({}, {"x5c": x5c, "alg": "RS256"})
    with pytest.raises(NotAuthentic):
        check(data, Issuer(NAME, "test-server", root=root.pem))


@given(st.binary(max_size=300))
def test_anything_is_refused(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        check(data or b"x")


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_changed_byte_is_refused(at: int, value: int) -> None:
    good = GOOD
    at %= len(good)
    bad = good[:at] + bytes([value]) + good[at + 1 :]
    if bad == good:
        return
    with pytest.raises(EvidenceError):
        check(bad)


GOOD = token()
