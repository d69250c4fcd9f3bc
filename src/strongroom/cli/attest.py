"""``strongroom attest``: evidence of what a machine is, collected, shown, verified."""

from __future__ import annotations

import hmac
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from cryptography import x509
from rich.text import Text

from strongroom.attest.appraise import rules
from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.attest.roots import Roots, production
from strongroom.attest.verify import Context, verify
from strongroom.cli import attest_collect, attest_measure, attest_show
from strongroom.cli.attest_files import Kind, advised, read_evidence, read_limited
from strongroom.cli.attest_show import flat, value_rows
from strongroom.cli.policy_files import read_policy
from strongroom.cli.terminal import note, plain, print_json, report, shown
from strongroom.cli.verb import Group, Json, verb
from strongroom.errors import EvidenceError, NotAcceptable, NotAuthentic, UsageError
from strongroom.release.decision import Decision, Finding, Presented, evaluate
from strongroom.release.messages import parse_time
from strongroom.release.policy import Policy

__all__ = ["app"]

_EXAMPLES = """
strongroom attest verify --evidence evidence.json
strongroom attest verify --kind tdx --evidence quote.bin --endorsements collateral.json --policy llama.json
strongroom attest verify --kind snp --evidence report.bin --endorsements vcek.pem --at 2026-03-01T00:00:00Z
"""


class _Attest(Group):
    examples = """
strongroom attest collect --challenge "$(openssl rand -hex 32)" -o evidence.json
strongroom attest show evidence.json
strongroom attest verify --evidence evidence.json --policy llama.json
"""


app = typer.Typer(
    name="attest",
    cls=_Attest,
    no_args_is_help=True,
    help="Evidence of what a machine is: collect it, look at it, verify it.",
)


def _roots(test_root: str | None, kind: str) -> Roots:
    if test_root is None:
        return production()
    pem = read_limited(test_root, MAX_ENDORSEMENTS)
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise UsageError(f"{shown(test_root)} is no certificate in PEM.") from None
    base = production()
    places: dict[str, dict[str, Any]] = {
        "sgx": {"intel": pem},
        "tdx": {"intel": pem},
        "snp": {"amd": dict.fromkeys(base.amd, pem)},
        "azure-vtpm": {"amd": dict.fromkeys(base.amd, pem)},
        "nitro": {"nitro": pem},
        "nvidia": {"nvidia_device": pem},
        "tpm": {"tpm": (pem,)},
    }
    if kind not in places:
        raise UsageError(f"Evidence of the kind {kind} has no root certificate.")
    note("a root for tests is believed. Anybody can have made this evidence.", label="TEST ROOT: ")
    return replace(base, test=True, **places[kind])


def _directory(endorsements: Sequence[str]) -> EndorsementSource | None:
    found = [one for one in endorsements if os.path.isdir(one)]
    if len(found) > 1:
        raise UsageError("--endorsements takes one directory.")
    if not found:
        return None
    from strongroom.attest.sources.files import DirectorySource

    return DirectorySource(found[0])


def _check_bound(claims: Claims, expected: bytes) -> None:
    wanted = expected.ljust(len(claims.bound), b"\0")
    if not hmac.compare_digest(claims.bound, wanted):
        raise NotAuthentic(
            "The evidence is bound to other report data than was expected.",
            hint="It was made for another challenge or key; have it made anew.",
        )


def _appraise(policy: Policy, claims: Claims, now: datetime) -> Decision:
    presented = Presented(
        now=now,
        claims=[claims],
        # What it must be bound to is not for a policy to say: --report-data has been compared.
        expected_primary={claims.kind: claims.bound},
        expected_secondary=claims.bound,
        allow_test_roots=claims.test_root,
    )
    decision = evaluate(policy, presented)
    findings = tuple(one for one in decision.findings if not one.path.endswith(".bound"))
    return replace(decision, findings=findings)


def _print(claims: Claims, decision: Decision | None, bound: bool) -> None:
    with report() as out:
        out.print(Text.assemble(("authentic", "bold green"), f": evidence of the kind {claims.kind}"))
        if claims.test_root:
            out.print(Text("under a TEST ROOT: it proves nothing", "bold red"))
        out.print(value_rows(_facts(claims, bound)))
        if decision is None:
            return
        out.print()
        word = ("acceptable", "bold green") if decision.allowed else ("not acceptable", "bold red")
        out.print(Text.assemble(word, _why(decision)))
        for finding in decision.findings:
            out.print(_reason(finding), soft_wrap=True)


def _why(decision: Decision) -> str:
    return f" by the policy: {decision.matched} holds" if decision.allowed else f" ({decision.code})"


def _reason(finding: Finding) -> Text:
    mark = ("  ok   ", "green") if finding.ok else ("  FAIL ", "bold red")
    return Text.assemble(mark, plain(f"{finding.path}: {finding.text}"))


def _facts(claims: Claims, bound: bool) -> list[tuple[str, str]]:
    compared = "as expected" if bound else "not compared: there is no --report-data"
    return [
        *flat(claims.values),
        ("bound to", f"{claims.bound.hex()} ({compared})"),
        ("platform", claims.platform or "the evidence does not say"),
        ("debug", "yes" if claims.debug else "no"),
        ("holds until", claims.not_after.isoformat(timespec="seconds")),
        *(("fault", fault) for fault in claims.faults),
    ]


def _verdict(
    evidence: Evidence, context: Context, expected: bytes | None, policy: Policy | None
) -> tuple[Claims, Decision | None]:
    claims = verify(evidence, context)
    if expected is not None:
        _check_bound(claims, expected)
    if policy is not None:
        return claims, _appraise(policy, claims, context.now)
    # What no policy could allow is not passed by in silence because there is none.
    broken = tuple(one for one in rules(claims, "evidence", context.now, test_roots=True) if not one.ok)
    return claims, Decision(False, "evidence", broken) if broken else None


def attest_verify(
    evidence: Annotated[
        str,
        typer.Option("--evidence", metavar="FILE", show_default=False, help="Evidence, JSON or raw."),
    ],
    kind: Kind = None,
    endorsements: Annotated[
        list[str] | None,
        typer.Option(
            "--endorsements",
            metavar="FILE",
            show_default=False,
            help="What vouches for it: certificates, CRLs, collateral; or a directory of them. Can be "
            "repeated.",
        ),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--at",
            metavar="TIME",
            show_default=False,
            help="Verify as of this moment, such as 2026-03-01T12:00:00Z; now, if not given.",
        ),
    ] = None,
    report_data: Annotated[
        str | None,
        typer.Option(
            "--report-data",
            metavar="HEX",
            show_default=False,
            help="What it must be bound to; zeros at the end can be left out.",
        ),
    ] = None,
    challenge: attest_collect.Challenge = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            show_default=False,
            help="Policy that must accept it, JSON or TOML.",
        ),
    ] = None,
    test_root: Annotated[
        str | None,
        typer.Option(
            "--test-root",
            metavar="PEM",
            show_default=False,
            help="Believe this root, which is for TESTS, in place of the vendor's.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Verify evidence: is it authentic and, with a policy, acceptable?

    Signatures, certificate chains up to the vendor's root, revocation and dates are verified. A policy
    is compared claim by claim, and each comparison is printed. Nothing is fetched from anywhere.

    Exit code 0 says that it is authentic and, where a policy was given, acceptable; 6 that it is not.
    A machine in debug mode is never acceptable.
    """
    now = datetime.now(UTC) if at is None else parse_time(at, "--at")
    files = [one for one in endorsements or () if not os.path.isdir(one)]
    found = read_evidence(evidence, kind, files)
    expected = attest_collect.bound_bytes(report_data, challenge, found.kind)
    wanted = None if policy is None else read_policy(policy)
    context = Context(now, _roots(test_root, found.kind), _directory(endorsements or ()))
    try:
        # What is malformed can be an endorsement too.
        with advised(None if endorsements else kind):
            claims, decision = _verdict(found, context, expected, wanted)
    except EvidenceError as error:
        if json:
            print_json({"authentic": False, "acceptable": None, "reason": error.message})
        raise
    if json:
        print_json(_json(claims, decision))
    else:
        _print(claims, decision, expected is not None)
        status = claims.values.get("tcb_status", "UpToDate")
        if decision is None and status != "UpToDate":
            note(
                f"its TCB is {plain(str(status))}; a policy must say whether that will do.",
                label="note: ",
            )
    if decision is not None and not decision.allowed:
        raise _not_acceptable(decision)


def _json(claims: Claims, decision: Decision | None) -> dict[str, Any]:
    return {
        "authentic": True,
        "acceptable": None if decision is None else decision.allowed,
        "claims": claims.to_json(),
        "digest": claims.digest.hex(),
        "decision": None if decision is None else decision.to_json(),
    }


def _not_acceptable(decision: Decision) -> NotAcceptable:
    reasons: Sequence[str] = [f"{one.path}: {one.text}" for one in decision.findings if not one.ok]
    return NotAcceptable("The evidence is authentic, and not acceptable.", reasons=reasons)


verb(app, "verify", attest_verify, _EXAMPLES)
attest_show.register(app)
attest_collect.register(app)
attest_measure.register(app)
