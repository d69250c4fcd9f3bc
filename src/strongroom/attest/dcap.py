"""Intel SGX and TDX: quotes, verified against Intel's collateral by dcap-qvl, and judged here.

The library checks signatures, chains, revocation, the QE and the TCB level, and refuses levels that
are revoked; *every other status it merely returns*, and so do we, as ``tcb_status``: what is good
enough is for a policy. It takes collateral from the future, so dates are checked here.

Quotes can be changed in many places and still verify (padding, PEM framing, the root that is sent
along). Nothing outside of the signed report and the collateral gets into the claims; their digest is
the identity of a quote, never the quote's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.certificate_parsing import UNREADABLE, extensions_of, load_certificates
from strongroom.attest.dcap_collateral import (
    Collateral,
    Span,
    check_spans,
    spans_of,
)
from strongroom.attest.dcap_quote import Quote
from strongroom.attest.endorsements import Wanted
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.verify import Context
from strongroom.errors import (
    MalformedEvidence,
    MissingEndorsement,
    MissingExtra,
    NotAuthentic,
    Unavailable,
)
from strongroom.format.encoding import parse_json

__all__ = ["describe", "verify"]

_PANIC: Final = "PanicException"

_SGX: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_FMSPC: Final = bytes.fromhex("060a2a864886f84d010d0104 0406")
"""In DER, before its six bytes: the number 4 under that of the extension, and an octet string."""


def verify(evidence: Evidence, context: Context) -> Claims:
    """The claims of a quote of SGX or TDX, whatever its TCB status; see :func:`.verify.verify`.

    The collateral is that of the configured source; where there is none, or it does not have it or does
    not answer, the first endorsement that comes with the evidence. In that order, since collateral
    holds for a month, and a machine could bring one from before its key was revoked.
    ``platform`` is ``ppid:…``, which a factory reset does not change; ``piid`` is among the values.
    ``tcb_date`` is the older of the dates of the platform's and the QE's level.
    """
    quote = parse(evidence)
    if quote.debug:
        what = "enclave" if quote.kind == "sgx" else "trust domain"
        raise NotAuthentic(
            f"The {what} runs in debug mode: whoever runs the machine can read all of its memory."
        )
    library = _library()
    chain, spans = _pck_chain(_call(library.parse_quote, evidence.data))
    collateral = _collateral(evidence, quote, chain[0], context)
    root_span, root = _root(context.roots.intel)
    not_after = check_spans([*spans, root_span, *collateral.spans], context.now)
    collateral.check_revoked(chain)
    found = _call(_verify, library, evidence.data, collateral, root, int(context.now.timestamp()))
    try:
        said = parse_json(found.to_json().encode())
        _check_same_report(quote, said)
        claims = _claims(quote, said, not_after, context.roots.test)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise NotAuthentic("The library's verdict cannot be read.") from None
    return replace(claims, crls=collateral.crl_numbers(test_root=context.roots.test))


def parse(evidence: Evidence) -> Quote:
    """The quote, not verified.

    Raises:
        MalformedEvidence: it is none, or one of another TEE than the evidence says.
    """
    quote = Quote.parse(evidence.data)
    if quote.kind != evidence.kind:
        raise MalformedEvidence(f"The evidence says {evidence.kind}, and is a quote of {quote.kind}.")
    return quote


def describe(evidence: Evidence) -> dict[str, Any]:
    """What a quote says, for people; nothing of it is verified.

    Raises:
        MalformedEvidence: it is no quote.
    """
    quote = parse(evidence)
    return {
        "version": quote.version,
        "debug": quote.debug,
        **quote.values,
        "report_data": quote.report_data.hex(),
    }


def _library() -> Any:
    try:
        import dcap_qvl
    except ImportError:
        raise MissingExtra("Verifying quotes of SGX and TDX", "attest") from None
    return dcap_qvl


def _call(function: Any, *arguments: Any) -> Any:
    """Call the library; what it raises, panics of Rust among it, becomes an error of our tree."""
    try:
        return function(*arguments)
    except MemoryError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).removeprefix("Verification failed: ").rstrip(".")[:300]
    except BaseException as error:
        # pyo3 lets a panic pass as a BaseException of a class that nobody can import.
        if type(error).__name__ != _PANIC:
            raise
        reason = "the library stopped at it"
    raise NotAuthentic(f"The quote does not verify: {reason}.")


@lru_cache(4)
def _root(pem: bytes) -> tuple[Span, bytes]:
    """When the root holds, and its DER."""
    root = x509.load_pem_x509_certificate(pem)
    span = Span("root", root.not_valid_before_utc, root.not_valid_after_utc)
    return span, root.public_bytes(Encoding.DER)


def _collateral(
    evidence: Evidence, quote: Quote, pck: x509.Certificate, context: Context
) -> Collateral:
    brought = evidence.endorsements[0] if evidence.endorsements else None
    if context.endorsements is None:
        if brought is None:
            raise MissingEndorsement(
                "Intel's collateral for this quote is not at hand.",
                hint="Send it along with the evidence, or configure a source of endorsements.",
            )
        return Collateral.parse(brought)
    members = {"tee": quote.kind, **_model(pck)}
    try:
        return Collateral.parse(context.endorsements.fetch(Wanted("intel", members)))
    except (MissingEndorsement, Unavailable):
        if brought is None:
            raise
        return Collateral.parse(brought)


def _model(pck: x509.Certificate) -> dict[str, str]:
    """For which machines and of which CA the collateral must be.

    The library parses the chain anew for each of the two, 0.11 ms. What it verifies is that the
    collateral is that of the machine: nothing wrong here makes it take another.
    """
    try:
        extension = extensions_of(pck).get_extension_for_oid(_SGX).value.public_bytes()
        begin = extension.index(_FMSPC) + len(_FMSPC)
        issuer = pck.issuer.rfc4514_string()
    except (*UNREADABLE, x509.ExtensionNotFound):
        raise NotAuthentic("The certificate of the platform does not say its model.") from None
    platform = "Platform" in issuer and "Processor" not in issuer
    return {
        "fmspc": extension[begin : begin + 6].hex().upper(),
        "ca": "platform" if platform else "processor",
    }


def _verify(library: Any, data: bytes, collateral: Collateral, root: bytes, now: int) -> Any:
    verifier = library.QuoteVerifier(root_ca_der=root)
    policy = library.QuotePolicy.claims_only(now)
    return verifier.verify_with_policy(data, collateral.parsed, now, policy)


def _pck_chain(parsed: Any) -> tuple[Sequence[x509.Certificate], list[Span]]:
    pem = _call(parsed.cert_chain_pem_bytes)
    if pem is None:
        raise MalformedEvidence("The quote does not bring the certificate of its platform.")
    try:
        chain = load_certificates(bytes(pem))
        return chain, spans_of(chain, "platform (PCK)")
    except UNREADABLE as error:
        raise MalformedEvidence(
            f"The certificates in the quote are none: {str(error)[:200]}."
        ) from None


def _check_same_report(quote: Quote, said: dict[str, Any]) -> None:
    """What we read at fixed places is what the library has verified."""
    ((_, report),) = said["report"].items()
    report = {**report.get("base", {}), **report}
    names = [name for name in ("mr_enclave", "mr_signer", "mr_td", "mr_seam", "xfam") if name in report]
    same = all(quote.values.get(name) == report[name] for name in names)
    same = same and all(
        quote.values[f"rtmr{index}"] == report[f"rt_mr{index}"]
        for index in range(4 * ("mr_td" in names))
    )
    if not same or len(names) < 2 or report["report_data"] != quote.report_data.hex():
        raise NotAuthentic("The quote can be read in two ways.")


def _claims(quote: Quote, said: dict[str, Any], not_after: datetime, test_root: bool) -> Claims:
    platform, pck = said["platform"], said["platform"]["pck"]
    ppid, piid = bytes(pck["ppid"] or ()).hex(), bytes(pck["platform_instance_id"] or ()).hex()
    dates = (platform["tcb_level"]["tcbDate"], said["qe"]["tcb_level"]["tcbDate"])
    values = {
        **quote.values,
        "tcb_status": said["tcb"]["status"],
        "advisories": sorted(said["tcb"]["advisory_ids"]),
        "tcb_eval": said["tcb"]["eval_data_number"],
        "tcb_date": min(dates),
        "fmspc": bytes(pck["fmspc"]).hex(),
        "ppid": ppid,
        "piid": piid or None,
    }
    identity = f"ppid:{ppid}" if ppid.strip("0") else f"piid:{piid}" if piid.strip("0") else None
    return Claims(quote.kind, values, quote.report_data, False, identity, not_after, test_root)
