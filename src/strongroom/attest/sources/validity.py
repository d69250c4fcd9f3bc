"""Until when an endorsement holds, by its own words: a cache keeps nothing longer."""

from __future__ import annotations

import base64
from datetime import datetime

from cryptography.x509 import ocsp

from strongroom.attest.certificates import load_certificate, load_certificates, load_crl
from strongroom.attest.dcap_collateral import Collateral
from strongroom.attest.endorsements import Wanted
from strongroom.attest.nvidia_rim import parse_rim
from strongroom.errors import StrongroomError

__all__ = ["valid_until"]


def valid_until(wanted: Wanted, data: bytes) -> datetime | None:
    """The end of its validity; None where it does not say one, or cannot be read.

    Nothing is authenticated: whoever lies here is refused by the verifier.
    """
    try:
        return _valid_until(wanted.what, data)
    except (StrongroomError, ValueError, TypeError):
        return None


def _valid_until(what: str, data: bytes) -> datetime | None:
    if what == "intel":
        return min(span.end for span in Collateral.parse(data).spans)
    if what in {"amd-vcek", "amd-chain"}:
        return min(one.not_valid_after_utc for one in load_certificates(data))
    if what == "amd-crl":
        return load_crl(data).next_update_utc
    if what == "nvidia-ocsp":
        return ocsp.load_der_ocsp_response(data).next_update_utc
    if what == "nvidia-rim":
        texts = [one.text or "" for one in parse_rim(data).iter("{*}X509Certificate")]
        chain = [load_certificate(base64.b64decode(text)) for text in texts]
        return min(one.not_valid_after_utc for one in chain)
    return None
