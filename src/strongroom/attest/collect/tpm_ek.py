"""The endorsement key of a TPM: its certificate, and credentials made for it.

TCG EK Credential Profile 2.5: where certificates lie (2.2.1.4 and 2.2.1.5), which keys they are of (annex B).
"""

from __future__ import annotations

from typing import Any, Final

from strongroom.attest.collect.tpm_device import read_certificate, read_nv, tpm2
from strongroom.errors import NotFound, UsageError

__all__ = ["ek_certificate", "recover_secret"]

_KEYS: Final = {
    0x01C00002: "EK-RSA2048",
    0x01C0000A: "EK-ECC256",
    0x01C00012: "EK-HIGH-RSA2048",
    0x01C00014: "EK-HIGH-ECC256",
    0x01C00016: "EK-HIGH-ECC384",
    0x01C00018: "EK-HIGH-ECC521",
    0x01C0001C: "EK-HIGH-RSA3072",
}
"""NV index of the certificate → the library's name of the template; the first that is there counts."""

_WRONG: Final = {0x84, 0x95, 0x9A, 0x9F, 0xA7}
"""TPM_RC_VALUE, SIZE, INSUFFICIENT, INTEGRITY, ECC_POINT: the credential is for other keys."""

_WHICH: Final = 0xBF
"""The bits of a response code that say what is wrong, without those that say where."""


def _found(tpm: Any) -> tuple[str, bytes] | None:
    for index, name in _KEYS.items():
        certificate = read_certificate(tpm, index)
        if certificate is not None:
            return name, certificate
    return None


def ek_certificate(tpm: Any) -> bytes | None:
    """The certificate that the TPM's maker has put into it, DER; None if there is none."""
    found = _found(tpm)
    return None if found is None else found[1]


def recover_secret(tpm: Any, attestation_key: Any, credential: bytes) -> bytes:
    """TPM2_ActivateCredential with the endorsement key that has a certificate.

    Args:
        tpm: connection.
        attestation_key: handle of the key whose name the credential is for.
        credential: TPM2B_ID_OBJECT ‖ TPM2B_ENCRYPTED_SECRET.

    Raises:
        NotFound: the TPM has no endorsement key with a certificate.
        UsageError: the credential is none, or for another TPM or key.
    """
    library = tpm2()
    found = _found(tpm)
    if found is None:
        raise NotFound("The TPM has no certificate of an endorsement key.")
    try:
        blob, used = library.TPM2B_ID_OBJECT.unmarshal(credential)
        secret, more = library.TPM2B_ENCRYPTED_SECRET.unmarshal(credential[used:])
    except library.TSS2_Exception:
        raise UsageError("This is not a credential for a TPM.") from None
    if used + more != len(credential):
        raise UsageError("This is not a credential for a TPM.")
    template = _template(tpm, found[0])
    handle, *_ = tpm.create_primary(None, template, primary_handle=library.ESYS_TR.ENDORSEMENT)
    try:
        return _activate(tpm, library, attestation_key, handle, template, blob, secret)
    finally:
        tpm.flush_context(handle)


def _template(tpm: Any, name: str) -> Any:
    from tpm2_pytss.utils import NoSuchIndex, create_ek_template

    def read(index: int) -> bytes:
        data = read_nv(tpm, index)
        if data is None:
            raise NoSuchIndex(index)
        return data

    return create_ek_template(name, read)[1]


def _activate(
    tpm: Any, library: Any, attestation_key: Any, handle: Any, template: Any, blob: Any, secret: Any
) -> bytes:
    # Keys of the low range can be used by a policy alone: who knows the hierarchy's password.
    by_policy = not template.publicArea.objectAttributes & library.TPMA_OBJECT.USERWITHAUTH
    session = _policy_session(tpm, library) if by_policy else library.ESYS_TR.PASSWORD
    try:
        return bytes(
            tpm.activate_credential(
                attestation_key, handle, blob, secret, library.ESYS_TR.PASSWORD, session
            )
        )
    except library.TSS2_Exception as error:
        if error.rc & _WHICH not in _WRONG:
            raise
        raise UsageError(
            "The credential is for another TPM, or for another attestation key of this one."
        ) from error
    finally:
        if by_policy:
            tpm.flush_context(session)


def _policy_session(tpm: Any, library: Any) -> Any:
    none = library.ESYS_TR.NONE
    symmetric = library.TPMT_SYM_DEF(algorithm=library.TPM2_ALG.NULL)
    session = tpm.start_auth_session(
        none, none, library.TPM2_SE.POLICY, symmetric, library.TPM2_ALG.SHA256
    )
    try:
        # It outlives its command, so that there is something to flush either way.
        tpm.trsess_set_attributes(session, library.TPMA_SESSION.CONTINUESESSION)
        tpm.policy_secret(library.ESYS_TR.ENDORSEMENT, session)
    except library.TSS2_Exception:
        tpm.flush_context(session)
        raise
    return session
