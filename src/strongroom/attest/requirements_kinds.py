"""What a requirement of each kind of evidence can list, and what it must list to identify anything.

Members are named as the claims are, except for minimums (``min_…``), registers (``rtmr``, ``pcr``) and
``prod_id``. ``docs/reference/policy.md`` has them as a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from strongroom.attest.requirements_checks import (
    Check,
    Member,
    at_least,
    includes,
    members_of,
    numbered,
    one_of,
    platforms,
    token_claims,
)
from strongroom.attest.requirements_devices import MATCH, count, device
from strongroom.attest.requirements_tcb import IntelTcb, intel_tcb, min_tcb
from strongroom.attest.requirements_values import (
    boolean,
    choice,
    hexadecimal,
    integer,
    matches,
    text,
    true,
)

__all__ = ["IDENTITY", "KINDS", "Kind"]

_U16: Final = (1 << 16) - 1
_U32: Final = (1 << 32) - 1
_PCRS: Final = 24
_NITRO_PCRS: Final = 32

_PLATFORM: Final = matches(
    re.compile(r"[a-z][a-z0-9_-]{0,19}:[0-9a-z][0-9a-z._-]{0,255}"),
    "the name of a machine such as ppid:… or chip_id:…, in lower case",
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of evidence, as policies see it.

    Attributes:
        members: that a requirement can list.
        needs: alternatives, each a set of members that must be listed and must identify something.
        implied: what is checked where the member is not listed.
    """

    members: Mapping[str, Member]
    needs: Sequence[Sequence[str]]
    implied: Mapping[str, Callable[[str], tuple[Check, ...]]] = field(default_factory=dict)


def _up_to_date(path: str) -> tuple[Check, ...]:
    return (IntelTcb(path),)


def _up_to_date_if_tdx(path: str) -> tuple[Check, ...]:
    return (IntelTcb(path, tdx_only=True),)


_sha256 = hexadecimal(32)
_sha384 = hexadecimal(48)

_INTEL: Final[Mapping[str, Member]] = {
    "tcb": intel_tcb,
    "fmspc": one_of(hexadecimal(6), "fmspc"),
    "platforms": platforms(_PLATFORM),
}
_SGX: Final = Kind(
    {
        "mr_enclave": one_of(_sha256, "mr_enclave"),
        "mr_signer": one_of(_sha256, "mr_signer"),
        "prod_id": one_of(integer(0, _U16), "isv_prod_id"),
        "min_svn": at_least(_U16, "isv_svn"),
        "attributes": one_of(hexadecimal(16), "attributes"),
        "config_id": one_of(hexadecimal(64), "config_id"),
        "min_config_svn": at_least(_U16, "config_svn"),
        "isv_family_id": one_of(hexadecimal(16), "isv_family_id"),
        "isv_ext_prod_id": one_of(hexadecimal(16), "isv_ext_prod_id"),
        **_INTEL,
    },
    needs=[["mr_enclave"], ["mr_signer", "prod_id", "min_svn"]],
    implied={"tcb": _up_to_date},
)
_TDX: Final = Kind(
    {
        "mr_td": one_of(_sha384, "mr_td"),
        "rtmr": numbered(_sha384, 4, lambda index: (f"rtmr{index}",)),
        "mr_config_id": one_of(_sha384, "mr_config_id"),
        "mr_owner": one_of(_sha384, "mr_owner"),
        "mr_owner_config": one_of(_sha384, "mr_owner_config"),
        "mr_seam": one_of(_sha384, "mr_seam"),
        "mr_signer_seam": one_of(_sha384, "mr_signer_seam"),
        "td_attributes": one_of(hexadecimal(8), "td_attributes"),
        "xfam": one_of(hexadecimal(8), "xfam"),
        **_INTEL,
    },
    needs=[["mr_td", "rtmr"], ["mr_td", "mr_config_id"]],
    implied={"tcb": _up_to_date},
)

_GUEST_POLICY: Final = (
    "smt",
    "migrate_ma",
    "single_socket",
    "cxl_allow",
    "mem_aes_256_xts",
    "rapl_dis",
    "ciphertext_hiding_dram",
    "page_swap_disable",
)
_PLATFORM_INFO: Final = (
    "smt_en",
    "tsme_en",
    "ecc_en",
    "rapl_dis",
    "ciphertext_hiding_dram_en",
    "alias_check_complete",
    "tio_en",
)
_SNP_MEMBERS: Final[Mapping[str, Member]] = {
    "measurement": one_of(_sha384, "measurement"),
    "host_data": one_of(_sha256, "host_data"),
    "family_id": one_of(hexadecimal(16), "family_id"),
    "image_id": one_of(hexadecimal(16), "image_id"),
    "id_key_digest": one_of(_sha384, "id_key_digest"),
    "author_key_digest": one_of(_sha384, "author_key_digest"),
    "vmpl": one_of(integer(0, 3), "vmpl"),
    "min_guest_svn": at_least(_U32, "guest_svn"),
    "guest_policy": members_of({name: one_of(boolean, "policy", name) for name in _GUEST_POLICY}),
    "platform_info": members_of(
        {name: one_of(boolean, "platform_info", name) for name in _PLATFORM_INFO}
    ),
    "product": one_of(choice("Milan", "Genoa", "Turin"), "product"),
    "signer": one_of(choice("vcek", "vlek"), "signer"),
    "csp_id": one_of(text, "csp_id"),
    "revocation": one_of(choice("checked"), "revocation"),
    "min_tcb": min_tcb,
    "platforms": platforms(_PLATFORM),
}
_SNP: Final = Kind(_SNP_MEMBERS, needs=[["measurement"]])

_tpm_pcr = numbered(hexadecimal(32, 48, 64), _PCRS, lambda index: ("pcr", index))
_TPM: Final = Kind(
    {
        "ak": one_of(_sha256, "ak"),
        # Anybody can make a key that says what he likes; one with a certificate is in some TPM at least.
        "ak_certified": one_of(true, "ak_certified"),
        "pcr": _tpm_pcr,
        "firmware_version": one_of(hexadecimal(8), "firmware_version"),
        "platforms": platforms(_PLATFORM),
    },
    needs=[["ak", "pcr"], ["platforms", "pcr"], ["ak_certified", "pcr"]],
)
_VM: Final[Mapping[str, Member]] = {
    "secure_boot": one_of(boolean, "vm", "secure_boot"),
    "console_enabled": one_of(boolean, "vm", "console_enabled"),
    "tpm_enabled": one_of(boolean, "vm", "tpm_enabled"),
    "vm_id": one_of(text, "vm", "vm_id"),
}
# Whoever runs a guest of his own can put a TPM of his own into it: without what Azure's firmware
# measures to, or who has signed it, registers mean nothing.
_AZURE: Final = Kind(
    {
        **_TDX.members,
        **_SNP_MEMBERS,
        "ak": one_of(_sha256, "ak"),
        "pcr": _tpm_pcr,
        "vm": members_of(_VM),
    },
    needs=[["measurement", "pcr"], ["id_key_digest", "pcr"], ["mr_td", "pcr"]],
    implied={"tcb": _up_to_date_if_tdx},
)
_NITRO: Final = Kind(
    {
        "pcr": numbered(_sha384, _NITRO_PCRS, lambda index: ("pcr", index)),
        "module_id": one_of(text, "module_id"),
        "platforms": platforms(_PLATFORM),
    },
    needs=[["pcr.0"], ["pcr.8"]],
)

_measurements = device(choice(MATCH, "mismatch", "no-reference"), "measurements")
_NVIDIA: Final = Kind(
    {
        "arch": device(text, "arch"),
        "count": count,
        "driver": device(text, "driver"),
        "vbios": device(text, "vbios"),
        "device": device(_sha256, "device"),
        "measurements": _measurements,
        "mode": device(choice("SPT", "MPT"), "mode"),
        "protected_pcie": device(boolean, "protected_pcie"),
        "secboot": device(true, "secboot"),
    },
    needs=[["arch", "count"]],
    implied={"measurements": lambda path: _measurements(MATCH, path)},
)

_TOKEN: Final[Mapping[str, Member]] = {
    "issuer": one_of(text, "issuer"),
    "claims": token_claims(within=False),
    "includes": token_claims(within=True),
}
_JWT: Final = Kind(
    {**_TOKEN, "profile": one_of(text, "profile"), "platforms": platforms(_PLATFORM)},
    needs=[["issuer", "claims"], ["issuer", "includes"]],
)
_OIDC: Final = Kind(
    {**_TOKEN, "subject": one_of(text, "subject"), "audience": includes(text, "audience")},
    needs=[["issuer", "subject"], ["issuer", "claims"], ["issuer", "includes"]],
)
_KUBERNETES: Final = Kind(
    {
        **_TOKEN,
        "namespace": one_of(text, "namespace"),
        "service_account": one_of(text, "service_account"),
        "pod": one_of(text, "pod"),
        "node": one_of(text, "node"),
        "audience": includes(text, "audience"),
    },
    needs=[["issuer", "namespace", "service_account"]],
)
_MTLS: Final = Kind(
    {
        "subject": one_of(text, "subject"),
        "san": includes(text, "san"),
        "issuer": one_of(text, "issuer"),
        "sha256": one_of(_sha256, "sha256"),
    },
    needs=[["subject"], ["san"], ["sha256"]],
)

KINDS: Final[Mapping[str, Kind]] = {
    "sgx": _SGX,
    "tdx": _TDX,
    "snp": _SNP,
    "nitro": _NITRO,
    "tpm": _TPM,
    "azure-vtpm": _AZURE,
    "jwt": _JWT,
    "mtls": _MTLS,
    "oidc": _OIDC,
    "kubernetes": _KUBERNETES,
    "nvidia": _NVIDIA,
}
"""Kind → what a requirement of it can list."""

IDENTITY: Final = frozenset({"mtls", "oidc", "kubernetes"})
"""Kinds that say who asks, and nothing of the machine: they come with the connection, not as evidence."""
