"""Every recorded piece of evidence and every synthetic attester, with what verifying it must give."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import nvidia_cases
from recorded import MANIFEST, fixed_time, read
from software_ak import SoftwareAk, pcr_values

from strongroom.attest.evidence import Evidence
from strongroom.attest.roots import Issuer, Roots, production
from strongroom.attest.tpm_evidence import TpmEvidence
from strongroom.attest.verify import Context
from strongroom.errors import EvidenceError, NotAuthentic
from strongroom.testing.amd import SnpPki
from strongroom.testing.azure import AzureMachine
from strongroom.testing.intel import IntelPki
from strongroom.testing.nitro import NitroPki
from strongroom.testing.tokens import TokenIssuer

NOW = datetime(2026, 11, 1, tzinfo=UTC)
BOUND = bytes(range(32))
MEASURED = b"\x11" * 48
EVIDENCE_KINDS = {
    "dcap-quote",
    "snp-report",
    "azure-snp-vtpm",
    "nitro-doc",
    "nvidia-report",
    "jwt-x5c",
    "jwt-unsigned",
    "tpm-coco",
}
"""Of the entries in the manifest, those that are evidence and not a part of some."""

GOOGLE = Issuer(
    "https://confidentialcomputing.googleapis.com",
    "z08381475938604996746",
    root=read("tokens/gcp_confidential_space_root.pem"),
)


@dataclass(frozen=True)
class Case:
    """One piece of evidence.

    Attributes:
        name: of its file, or of what has made it.
        evidence: as a machine sends it.
        context: moment, roots, no source of endorsements.
        refused: the error that verifying it gives, or None.
        reason: what the error says.
        debug: what the claims say.
        says: some of the values of the claims.
        bound: what it is bound to.
        platform: how the machine's name begins; None where the evidence does not name one.
        rootless: no root is needed: what it is worth is for a policy that lists its key.
    """

    name: str
    evidence: Evidence
    context: Context
    refused: type[EvidenceError] | None = None
    reason: str = ""
    debug: bool = False
    says: dict[str, Any] = field(default_factory=dict)
    bound: bytes = BOUND
    platform: str | None = None
    rootless: bool = False

    def __str__(self) -> str:
        return self.name


def _context(name: str, roots: Roots | None = None) -> Context:
    when = MANIFEST[name].get("fixed_time")
    return Context(fixed_time(name) if when else NOW, roots or production())


def _dcap(name: str, **more: Any) -> Case:
    entry = MANIFEST[name]
    collateral = (read(entry["collateral"]),) if entry["collateral"] else ()
    evidence = Evidence(entry["tee"].lower(), read(name), collateral)
    given = {"bound": bytes.fromhex(entry["report_data"]), "platform": "ppid:", **more}
    return Case(name, evidence, _context(name), **given)


def _snp(name: str) -> Case:
    entry = MANIFEST[name]
    expected = entry["expected"]
    chain = read(f"snp/roots/{expected['product'].lower()}_ask_ark_asvk.pem")
    evidence = Evidence("snp", read(name), (read(entry["vek"]), chain))
    hidden = not entry["measurements"]["chip_id"].strip("0")
    return Case(
        name,
        evidence,
        _context(name),
        debug=expected["debug"],
        says={
            "signer": expected["kind"],
            "product": expected["product"],
            "measurement": entry["measurements"]["measurement"],
        },
        bound=bytes.fromhex(entry["report_data"]),
        platform=None if hidden else "chip_id:",
    )


def _azure(name: str, bound: bytes) -> Case:
    chain = read("snp/roots/milan_ask_ark_asvk.pem")
    evidence = Evidence("azure-vtpm", read(name), (chain,))
    says = {"product": "Milan", "vmpl": 0}
    return Case(name, evidence, _context(name), says=says, bound=bound, platform="ak:")


def _nitro(name: str) -> Case:
    entry = MANIFEST[name]
    bound = bytes.fromhex(entry["report_data"])
    return Case(
        name,
        Evidence("nitro", read(name)),
        _context(name),
        debug=entry["expected"]["debug"],
        bound=bound,
        platform="nitro:i-0",
    )


def _nvidia(name: str) -> Case:
    entry = MANIFEST[name]
    device = nvidia_cases.recorded(name.removeprefix("nvidia/").removesuffix(".report"))
    evidence = nvidia_cases.evidence_of(device)
    return Case(name, evidence, _context(name), bound=bytes.fromhex(entry["nonce"]), platform="nvidia:")


def _tpm() -> Case:
    raw = read("tpm/pcr.bin")
    indices = (0, 1, 2, 3, 4, 5, 6, 7, 9, 16)
    pcrs = {"sha256": {index: raw[32 * at : 32 * at + 32] for at, index in enumerate(indices)}}
    evidence = TpmEvidence.build(read("tpm/ak.pub"), read("tpm/q.msg"), read("tpm/q.sig"), pcrs)
    bound = bytes.fromhex(read("tpm/nonce").decode().strip())
    context = Context(NOW, production())
    return Case("tpm/q.msg", evidence, context, bound=bound, platform="ak:", rootless=True)


def _unsigned() -> Case:
    name = "tokens/nvidia_local_eat_alg_none.json"
    detached = json.dumps(json.loads(read(name))["detached_eat"]).encode()
    roots = replace(production(), issuers=[GOOGLE])
    return Case(name, Evidence("jwt", detached), Context(NOW, roots), NotAuthentic, "algorithm|issuer")


@cache
def recorded_cases() -> Sequence[Case]:
    """What real machines have made."""
    google = replace(production(), issuers=[GOOGLE])
    token = "tokens/gcp_confidential_space.jwt"
    nonce = bytes.fromhex(MANIFEST[token]["expected"]["eat_nonce"])
    return [
        _dcap("dcap/sgx_v3.bin", says={"tcb_status": "ConfigurationAndSWHardeningNeeded"}),
        _dcap("dcap/tdx_v4.bin", says={"tcb_status": "UpToDate"}),
        _dcap("dcap/tdx_v5.bin", says={"tcb_status": "UpToDate"}),
        # Its revocation lists were issued later than its TCB info had ended.
        _dcap("dcap/tdx_v4_out_of_date.bin", refused=NotAuthentic, reason="from the future"),
        _dcap("dcap/tdx_v4_debug.bin", refused=NotAuthentic, reason="debug mode"),
        _dcap("dcap/sgx_v3_debug.bin", refused=NotAuthentic, reason="debug mode"),
        *(_snp(name) for name, entry in MANIFEST.items() if entry["kind"] == "snp-report"),
        _azure("azure/snp_vtpm_v0.json", b"challenge"),
        _azure(
            "azure/snp_vtpm_v2.json",
            bytes.fromhex(
                "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2"
                "279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef"
            ),
        ),
        *(_nitro(name) for name, entry in MANIFEST.items() if entry["kind"] == "nitro-doc"),
        *(_nvidia(name) for name, entry in MANIFEST.items() if entry["kind"] == "nvidia-report"),
        _tpm(),
        Case(
            "tpm/coco.json",
            Evidence("tpm", read("tpm/coco.json")),
            _context("tpm/coco.json"),
            bound=TpmEvidence.parse(read("tpm/coco.json")).attest.extra_data,
            platform="ak:",
            rootless=True,
        ),
        Case(
            token, Evidence("jwt", read(token)), _context(token, google), bound=nonce, platform="jwt:"
        ),
        _unsigned(),
    ]


@cache
def intel() -> IntelPki:
    return IntelPki.create(NOW)


@cache
def snp(product: str = "Milan", signer: str = "vcek") -> SnpPki:
    return SnpPki.create(NOW, product=product, signer=signer)


@cache
def nitro() -> NitroPki:
    return NitroPki.create(NOW)


@cache
def issuer() -> TokenIssuer:
    return TokenIssuer("https://issuer.example", NOW)


@cache
def azure(tee: str) -> AzureMachine:
    return AzureMachine.create(snp() if tee == "snp" else intel(), pcrs={7: b"\x07" * 32})


def synthetic(name: str, bound: bytes = BOUND, *, debug: bool = False) -> tuple[Evidence, Roots]:
    """Evidence of an attester that there is not, and the roots under which it verifies."""
    base = production()
    if name in ("sgx", "tdx"):
        parts = {"mr_td": MEASURED} if name == "tdx" else {"mr_enclave": MEASURED[:32]}
        return intel().evidence(name, bound, debug=debug, **parts), intel().roots(base)
    if name.startswith("snp"):
        made = snp(*name.split("-")[1:])
        return made.evidence(bound, debug=debug, measurement=MEASURED), made.roots(base)
    if name == "nitro":
        return nitro().evidence(bound, debug=debug), nitro().roots(base)
    if name.startswith("azure"):
        measured = {"measurement" if name == "azure-snp" else "mr_td": MEASURED}
        machine = azure(name.split("-")[1]).with_parts(debug=debug, **measured)
        return machine.evidence(bound), machine.roots(base)
    if name == "nvidia":
        made_gpu = nvidia_cases.pki()
        return made_gpu.evidence(bound), made_gpu.roots(base)
    if name == "jwt":
        claims = {"eat_nonce": bound.hex(), **({"dbgstat": "enabled"} if debug else {})}
        roots = replace(base, issuers=[issuer().trusted()], test=True)
        return Evidence("jwt", issuer().token(claims)), roots
    ak = SoftwareAk(pcrs=pcr_values([0, 7]))
    return ak.evidence(bound), replace(base, test=True)


SYNTHETIC = {
    "sgx": "ppid:",
    "tdx": "ppid:",
    **{f"snp-{product}-vcek": "chip_id:" for product in ("Milan", "Genoa", "Turin")},
    **{f"snp-{product}-vlek": "chip_id:" for product in ("Milan", "Genoa", "Turin")},
    "nitro": "nitro:i-0",
    "azure-snp": "ak:",
    "azure-tdx": "ak:",
    "nvidia": "nvidia:",
    "jwt": None,
    "tpm": "ak:",
}
"""Attester → how the name of its machine begins."""


@cache
def synthetic_cases() -> Sequence[Case]:
    """What the attesters of tests make."""
    cases = []
    for name, platform in SYNTHETIC.items():
        evidence, roots = synthetic(name)
        bound = BOUND.ljust(64, b"\0") if evidence.kind in ("sgx", "tdx", "snp") else BOUND
        cases.append(
            Case(
                name,
                evidence,
                Context(NOW, roots),
                bound=bound,
                platform=platform,
                rootless=name == "tpm",
            )
        )
    return cases
