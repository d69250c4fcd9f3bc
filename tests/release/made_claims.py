"""Claims made by hand, one of every kind, and for each the requirement that lists everything they say."""

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from strongroom.attest.evidence import Claims
from strongroom.release.decision import Asked, Presented
from strongroom.release.names import KeyName

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BUNDLE = bytes(range(16))
PRIMARY, SECONDARY = bytes(range(64)), bytes(range(100, 132))


def digits(digit, size):
    return digit * (2 * size)


VALUES = {
    "sgx": {
        "mr_enclave": digits("1", 32),
        "mr_signer": digits("2", 32),
        "isv_prod_id": 3,
        "isv_svn": 5,
        "attributes": "0500000000000000e700000000000000",
        "config_id": digits("3", 64),
        "config_svn": 2,
        "isv_family_id": digits("4", 16),
        "isv_ext_prod_id": digits("5", 16),
        "tcb_status": "UpToDate",
        "advisories": [],
        "tcb_eval": 18,
        "fmspc": "00a067110000",
        "ppid": digits("6", 16),
        "piid": digits("7", 16),
    },
    "tdx": {
        "mr_td": digits("1", 48),
        "rtmr0": digits("2", 48),
        "rtmr1": digits("3", 48),
        "rtmr2": digits("4", 48),
        "rtmr3": digits("0", 48),
        "mr_config_id": digits("5", 48),
        "mr_owner": digits("6", 48),
        "mr_owner_config": digits("7", 48),
        "mr_seam": digits("8", 48),
        "mr_signer_seam": digits("0", 48),
        "td_attributes": "0000001000000000",
        "xfam": "e702060000000000",
        "tcb_status": "UpToDate",
        "advisories": [],
        "tcb_eval": 18,
        "fmspc": "b0c06f000000",
        "ppid": digits("9", 16),
        "piid": digits("a", 16),
    },
    "snp": {
        "measurement": digits("1", 48),
        "host_data": digits("2", 32),
        "family_id": digits("3", 16),
        "image_id": digits("4", 16),
        "id_key_digest": digits("5", 48),
        "author_key_digest": digits("6", 48),
        "vmpl": 0,
        "guest_svn": 4,
        "policy": {"smt": True, "migrate_ma": False, "debug": False, "single_socket": False},
        "platform_info": {"smt_en": True, "alias_check_complete": True},
        "product": "Genoa",
        "signer": "vcek",
        "csp_id": "AWS",
        "revocation": "checked",
        "tcb": {
            "committed": {"bootloader": 10, "tee": 0, "snp": 23, "microcode": 72},
            "launch": {"bootloader": 10, "tee": 0, "snp": 24, "microcode": 73},
            "reported": {"bootloader": 10, "tee": 0, "snp": 25, "microcode": 84},
        },
        "chip_id": digits("b", 64),
    },
    "nitro": {
        "pcr": {"0": digits("1", 48), "1": digits("2", 48), "8": digits("3", 48)},
        "module_id": "i-0123456789-enc0123456789",
    },
    "tpm": {
        "ak": digits("1", 32),
        "ak_certified": True,
        "pcr": {"7": digits("2", 32), "11": digits("3", 32)},
        "firmware_version": digits("4", 8),
    },
    "jwt": {
        "issuer": "https://confidentialcomputing.googleapis.com",
        "profile": "https://cloud.google.com/confidential-computing",
        "claims": {
            "hwmodel": "GCP_INTEL_TDX",
            "secboot": True,
            "oemid": 11129,
            "submods": {"container": {"image_digest": "sha256:" + digits("1", 32), "args": ["a", "b"]}},
        },
    },
    "mtls": {
        "subject": "CN=server-7,O=Example",
        "issuer": "CN=Example CA",
        "san": ["server-7.example.com", "spiffe://example.com/serving"],
        "sha256": digits("c", 32),
    },
    "oidc": {
        "issuer": "https://login.example.com",
        "subject": "serving",
        "audience": ["keys.example.com", "other"],
        "claims": {"team": "ml", "groups": ["serving", "staff"]},
    },
    "kubernetes": {
        "issuer": "https://kubernetes.default.svc",
        "namespace": "serving",
        "service_account": "llama",
        "pod": "llama-0",
        "node": "node-7",
        "audience": ["keys.example.com"],
        "claims": {"kubernetes.io": {"namespace": "serving"}},
    },
    "nvidia": {
        "devices": [
            {
                "arch": "HOPPER",
                "driver": "580.95.05",
                "vbios": "96.00.9F.00.01",
                "device": digits(digit, 32),
                "measurements": "match",
                "mode": "SPT",
                "protected_pcie": False,
                "secboot": True,
            }
            for digit in "de"
        ]
    },
}
VALUES["azure-vtpm"] = {
    **VALUES["snp"],
    "ak": digits("d", 32),
    "pcr": {"4": digits("e", 32)},
    "vm": {"secure_boot": True, "console_enabled": False, "tpm_enabled": True, "vm_id": "7DF7B373"},
}

PLATFORM = {
    "sgx": "ppid:" + digits("6", 16),
    "tdx": "ppid:" + digits("9", 16),
    "snp": "chip_id:" + digits("b", 64),
    "azure-vtpm": "ak:" + digits("d", 32),
    "nitro": "module:i-0123456789",
    "tpm": "ak:" + digits("1", 32),
}

_SNP = {
    "measurement": [digits("1", 48)],
    "host_data": digits("2", 32),
    "family_id": digits("3", 16),
    "image_id": digits("4", 16),
    "id_key_digest": digits("5", 48),
    "author_key_digest": digits("6", 48),
    "vmpl": [0, 1],
    "min_guest_svn": 4,
    "guest_policy": {"smt": True, "migrate_ma": False, "single_socket": False},
    "platform_info": {"smt_en": True, "alias_check_complete": True},
    "product": ["Genoa"],
    "signer": "vcek",
    "csp_id": "AWS",
    "revocation": "checked",
    "min_tcb": {"of": "committed", "bootloader": 10, "snp": 23, "microcode": 72},
    "platforms": [PLATFORM["snp"]],
}
_TCB = {
    "status": [
        "UpToDate",
        {
            "status": "SWHardeningNeeded",
            "until": "2026-04-01T00:00:00Z",
            "advisories": ["INTEL-SA-00615"],
        },
    ],
    "min_eval": 18,
    "advisories_deny": ["INTEL-SA-00289"],
}
FULL = {
    "sgx": {
        "mr_enclave": [digits("1", 32), digits("e", 32)],
        "mr_signer": digits("2", 32),
        "prod_id": [3],
        "min_svn": 5,
        "attributes": "0500000000000000e700000000000000",
        "config_id": digits("3", 64),
        "min_config_svn": 2,
        "isv_family_id": digits("4", 16),
        "isv_ext_prod_id": digits("5", 16),
        "tcb": _TCB,
        "fmspc": "00a067110000",
        "platforms": ["piid:" + digits("7", 16)],
    },
    "tdx": {
        "mr_td": [digits("1", 48)],
        "rtmr": {
            "0": digits("2", 48),
            "1": [digits("3", 48)],
            "2": digits("4", 48),
            "3": digits("0", 48),
        },
        "mr_config_id": digits("5", 48),
        "mr_owner": digits("6", 48),
        "mr_owner_config": digits("7", 48),
        "mr_seam": digits("8", 48),
        "mr_signer_seam": digits("0", 48),
        "td_attributes": "0000001000000000",
        "xfam": "e702060000000000",
        "tcb": _TCB,
        "fmspc": ["b0c06f000000"],
        "platforms": [PLATFORM["tdx"]],
    },
    "snp": _SNP,
    "azure-vtpm": {
        **_SNP,
        "ak": digits("d", 32),
        "pcr": {"4": digits("e", 32)},
        "vm": {"secure_boot": True, "console_enabled": False, "tpm_enabled": True, "vm_id": "7DF7B373"},
    },
    "nitro": {
        "pcr": {"0": [digits("1", 48)], "1": digits("2", 48), "8": digits("3", 48)},
        "module_id": "i-0123456789-enc0123456789",
        "platforms": ["module:i-0123456789"],
    },
    "tpm": {
        "ak": [digits("1", 32)],
        "ak_certified": True,
        "pcr": {"7": digits("2", 32), "11": [digits("3", 32), digits("4", 32)]},
        "firmware_version": digits("4", 8),
        "platforms": [PLATFORM["tpm"]],
    },
    "jwt": {
        "issuer": "https://confidentialcomputing.googleapis.com",
        "profile": "https://cloud.google.com/confidential-computing",
        "claims": {
            "hwmodel": "GCP_INTEL_TDX",
            "secboot": True,
            "oemid": 11129,
            "submods": {"container": {"image_digest": ["sha256:" + digits("1", 32)]}},
        },
        "includes": {"submods": {"container": {"args": ["b"]}}},
    },
    "mtls": {
        "subject": "CN=server-7,O=Example",
        "issuer": "CN=Example CA",
        "san": "spiffe://example.com/serving",
        "sha256": [digits("c", 32)],
    },
    "oidc": {
        "issuer": "https://login.example.com",
        "subject": ["serving", "training"],
        "audience": "keys.example.com",
        "claims": {"team": "ml"},
        "includes": {"groups": ["serving"]},
    },
    "kubernetes": {
        "issuer": "https://kubernetes.default.svc",
        "namespace": "serving",
        "service_account": "llama",
        "pod": "llama-0",
        "node": "node-7",
        "audience": "keys.example.com",
        "claims": {"kubernetes.io": {"namespace": "serving"}},
    },
    "nvidia": {
        "arch": "HOPPER",
        "count": 2,
        "driver": ["580.95.05"],
        "vbios": "96.00.9F.00.01",
        "device": [digits("d", 32), digits("e", 32)],
        "measurements": "match",
        "mode": "SPT",
        "protected_pcie": False,
        "secboot": True,
    },
}
"""Kind → members of a requirement that its claims meet; every member of the kind is there."""

IDENTITY = ("mtls", "oidc", "kubernetes")
PRIMARY_KINDS = tuple(kind for kind in FULL if kind != "nvidia")


def claims(kind, **changes):
    bound = SECONDARY if kind == "nvidia" else b"" if kind in IDENTITY else PRIMARY
    made = Claims(
        kind=kind,
        values=copy.deepcopy(VALUES[kind]),
        bound=bound,
        debug=False,
        platform=PLATFORM.get(kind),
        not_after=NOW + timedelta(hours=1),
    )
    return replace(made, **changes)


def requirement(kind, **members):
    return {"kind": kind, **copy.deepcopy(FULL[kind]), **members}


def document(*requirements, **members):
    return {
        "id": "llama-prod",
        "version": 1,
        "keys": ["models/llama/"],
        "any": list(requirements) or [requirement("tdx")],
        **members,
    }


def asked(version=3, current=3, **changes):
    made = Asked(
        key=KeyName("models/llama/70b", version),
        bundle=BUNDLE,
        current_version=current,
        current_bundle=BUNDLE,
        state="active",
        registered=BUNDLE,
    )
    return replace(made, **changes)


def presented(*pieces, **changes):
    made = Presented(
        now=NOW,
        claims=pieces,
        expected_primary={pieces[0].kind: PRIMARY} if pieces else {},
        expected_secondary=SECONDARY,
    )
    return replace(made, **changes)
