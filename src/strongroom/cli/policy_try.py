"""``strongroom policy test|explain``: a policy on evidence that was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from strongroom.attest.evidence import Claims, Evidence
from strongroom.attest.registry import KINDS
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.cli.attest_files import read_evidence, read_limited
from strongroom.cli.policy_files import read_policy
from strongroom.cli.terminal import note, plain, print_json, report, shown
from strongroom.cli.verb import Json, verb
from strongroom.errors import NotAcceptable, NotAuthentic, UsageError
from strongroom.format.encoding import parse_json
from strongroom.release.decision import Decision, Finding, Presented, evaluate
from strongroom.release.messages import parse_time
from strongroom.release.policy import Policy
from strongroom.release.stored_claims import claims_from_json

__all__ = ["At", "File", "register"]

_TEST_EXAMPLES = """
strongroom policy test llama.json --evidence evidence.json
strongroom policy test llama.json --evidence snp:report.bin --endorsements vcek.der --expect deny
strongroom policy test llama.json --claims node-7.json --at 2026-03-01T12:00:00Z
"""
_EXPLAIN_EXAMPLES = """
strongroom policy explain llama.json --evidence evidence.json
strongroom policy explain llama.json --evidence tdx:quote.bin --endorsements collateral.json
strongroom policy explain llama.json --claims node-7.json --json | jq '.findings[] | select(.ok | not)'
"""

_MAX_CLAIMS: Final = 1 << 20

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE", show_default=False, help="The policy: JSON, or TOML as its name says."
    ),
]
_Evidence = Annotated[
    list[str] | None,
    typer.Option(
        "--evidence",
        metavar="[KIND:]FILE",
        show_default=False,
        help="Evidence, JSON or raw bytes of a kind. Primary first, then secondary: can be repeated.",
    ),
]
_Claims = Annotated[
    list[str] | None,
    typer.Option(
        "--claims",
        metavar="FILE",
        show_default=False,
        help="Claims as attest verify --json or an audit record has them; not verified. Can be repeated.",
    ),
]
_Endorsements = Annotated[
    list[str] | None,
    typer.Option(
        "--endorsements",
        metavar="FILE",
        show_default=False,
        help="What vouches for the first evidence: certificates, CRLs, collateral. Can be repeated.",
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="TIME",
        show_default=False,
        help="Decide as of this moment, such as 2026-03-01T12:00:00Z; now, if not given.",
    ),
]
_Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        show_default=False,
        help="keyserver.toml, for its issuers of tokens, CAs of TPMs and roots for tests.",
    ),
]


class _Expected(Enum):
    allow = "allow"
    deny = "deny"


def _evidence(given: str, endorsements: Sequence[str]) -> Evidence:
    kind, colon, path = given.partition(":")
    if colon and kind in KINDS:
        return read_evidence(path, kind, endorsements)
    return read_evidence(given, None, endorsements)


def _claims(path: str) -> Claims:
    try:
        members = parse_json(read_limited(path, _MAX_CLAIMS))
    except ValueError as error:
        raise UsageError(f"{shown(path)} {error}.") from None
    # The whole answer of attest verify --json will do.
    members = members["claims"] if isinstance(members.get("claims"), dict) else members
    if isinstance(members.get("not_after"), str):
        parse_time(members["not_after"], "not_after of the claims")
    return claims_from_json(members)


def _context(config: Path | None, now: datetime) -> Context:
    """Whom the server of ``config`` believes; of its sources only files are asked."""
    if config is None:
        return Context(now, production())
    from strongroom.attest.sources import endorsement_source
    from strongroom.keyserver.config import load_config
    from strongroom.keyserver.trust import key_set_specs, roots_of

    attestation = load_config(config).attestation
    roots = roots_of(attestation)
    if roots.test:
        note("roots for tests are believed. Anybody can have made this evidence.", label="TEST ROOT: ")
    return Context(now, roots, endorsement_source(key_set_specs(attestation.issuers)))


def _decide(
    policy: Policy,
    evidence: Sequence[str] | None,
    claims: Sequence[str] | None,
    endorsements: Sequence[str] | None,
    config: Path | None,
    at: str | None,
) -> tuple[Decision, list[Claims]]:
    now = datetime.now(UTC) if at is None else parse_time(at, "--at")
    if not evidence and not claims:
        raise UsageError("There is nothing to decide about.", hint="Give --evidence or --claims.")
    if endorsements and not evidence:
        raise UsageError("--endorsements vouch for --evidence, and there is none.")
    context = _context(config, now)
    pieces = [
        _evidence(one, () if index else endorsements or ()) for index, one in enumerate(evidence or ())
    ]
    recorded = [_claims(one) for one in claims or ()]
    try:
        found = [verify(one, context) for one in pieces]
    except NotAuthentic as error:
        finding = Finding(False, "evidence", None, "authentic", error.message)
        return Decision(False, "evidence", (finding,)), recorded
    found += recorded
    presented = Presented(
        now=now,
        claims=found,
        expected_primary={},
        expected_secondary=b"",
        # Claims on record say for themselves under which roots they were verified.
        allow_test_roots=True,
    )
    return evaluate(policy, presented), found


def policy_test(
    file: File,
    evidence: _Evidence = None,
    claims: _Claims = None,
    endorsements: _Endorsements = None,
    config: _Config = None,
    at: At = None,
    expect: Annotated[
        _Expected, typer.Option("--expect", help="What the policy should do.")
    ] = _Expected.allow,
    json: Json = False,
) -> None:
    """Run a policy on evidence, and compare the decision with the one that is expected.

    The evidence is verified as of --at: signatures, chains, dates. What it is bound to is not compared,
    since it was made for another request. Nothing is fetched from anywhere.

    Exit code 0 says that the decision is the expected one, 6 that it is not.
    """
    policy = read_policy(file)
    decision, found = _decide(policy, evidence, claims, endorsements, config, at)
    wanted = expect is _Expected.allow
    if json:
        print_json({**_json(policy, decision, found), "expected": expect.value})
    else:
        with report() as out:
            out.print(_verdict(policy, decision), soft_wrap=True)
            if not decision.allowed:
                _print_lines(out, "", [one for one in decision.findings if not one.ok])
    if decision.allowed != wanted:
        raise _unexpected(decision)


def explain(
    file: File,
    evidence: _Evidence = None,
    claims: _Claims = None,
    endorsements: _Endorsements = None,
    config: _Config = None,
    at: At = None,
    json: Json = False,
) -> None:
    """Show claim by claim why a policy allows evidence, or does not.

    Every alternative of the policy is shown, with everything that was compared: what the evidence says,
    what the policy lists. The evidence is verified as for strongroom policy test.

    Exit code 0 says that it is allowed, 6 that it is not.
    """
    policy = read_policy(file)
    decision, found = _decide(policy, evidence, claims, endorsements, config, at)
    if json:
        print_json(_json(policy, decision, found))
    else:
        with report() as out:
            out.print(_verdict(policy, decision), soft_wrap=True)
            _print_tree(out, policy, decision, found)
    if not decision.allowed:
        raise _unexpected(decision)


def _unexpected(decision: Decision) -> NotAcceptable:
    if decision.allowed:
        return NotAcceptable("The policy allows what it was expected to refuse.")
    reasons = [f"{one.path}: {one.text}" for one in decision.findings if not one.ok]
    return NotAcceptable("The policy does not allow this machine the keys.", reasons=reasons)


def _json(policy: Policy, decision: Decision, found: Sequence[Claims]) -> dict[str, Any]:
    return {
        "policy": policy.id,
        "version": policy.version,
        "digest": policy.digest.hex(),
        **decision.to_json(),
        "claims": [one.to_json() for one in found],
    }


def _verdict(policy: Policy, decision: Decision) -> Text:
    what = plain(f"{policy.id} version {policy.version}: ")
    if decision.allowed:
        return Text.assemble(what, ("allowed", "bold green"), f", {decision.matched} holds")
    return Text.assemble(what, ("refused", "bold red"), f" ({decision.code})")


def _group(path: str) -> str:
    """``any[0].with[0].driver`` → ``any[0].with[0]``; what is about the whole policy has none."""
    head, bracket, _ = path.rpartition("]")
    return head + bracket if path.startswith(("any[", "evidence[")) else ""


def _print_tree(out: Console, policy: Policy, decision: Decision, found: Sequence[Claims]) -> None:
    kinds = {f"evidence[{index}]": one.kind for index, one in enumerate(found)}
    for one in policy.alternatives:
        kinds |= {one.path: one.kind} | {other.path: other.kind for other in one.companions}
    for title, findings in groupby(decision.findings, key=lambda finding: _group(finding.path)):
        if title:
            state = ("  holds", "green") if title == decision.matched else ("", "")
            out.print(
                Text.assemble("\n", (title, "bold cyan"), f" {plain(kinds.get(title, ''))}", state)
            )
        _print_lines(out, title, list(findings))


def _print_lines(out: Console, title: str, findings: Sequence[Finding]) -> None:
    names = [plain(one.path.removeprefix(title).lstrip(".")) for one in findings]
    width = max(map(len, names), default=0)
    for name, finding in zip(names, findings, strict=True):
        mark = ("  ok    ", "green") if finding.ok else ("  FAIL  ", "bold red")
        line = Text.assemble(mark, (f"{name:<{width}}  ", "cyan"), plain(finding.text))
        out.print(line, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the group ``policy``."""
    verb(app, "test", policy_test, _TEST_EXAMPLES)
    verb(app, "explain", explain, _EXPLAIN_EXAMPLES)
