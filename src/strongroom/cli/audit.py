"""``strongroom audit``: what happened at a key server, and whether the record of it is whole."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Annotated, Any, Final

import typer

from strongroom.cli.admin import Caller, Server, TokenFile, load_profile, open_admin
from strongroom.cli.attest_files import read_limited
from strongroom.cli.audit_text import record_lines
from strongroom.cli.terminal import note, plain, print_json, shown
from strongroom.cli.verb import Force, Group, Json, Output, Quiet, verb
from strongroom.errors import UsageError, os_errors
from strongroom.format.encoding import canonical_json, parse_json
from strongroom.model.output import open_file_output
from strongroom.providers.admin import Pinned, audit_head_of, records_of
from strongroom.release.audit import GENESIS, Head, verify_chain

__all__ = ["app"]

_MAX_ANCHOR: Final = 16 << 20
"""Bytes of a file of heads: a head signed every minute for a month has 13 MB."""


class _Audit(Group):
    examples = """
strongroom audit tail -n 50
strongroom audit export -o audit.jsonl --head audit.head
strongroom audit verify --records audit.jsonl --anchor audit.head
"""


app = typer.Typer(
    name="audit",
    cls=_Audit,
    no_args_is_help=True,
    help="What happened at a key server, and whether the record of it is whole.",
)


def tail(
    count: Annotated[
        int, typer.Option("-n", "--count", metavar="N", min=1, max=1000, help="How many records.")
    ] = 20,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Show the last audit records: who did what, and why machines were refused.

    With --json, whole records, one on each line.
    """
    with open_admin(server, token_file) as caller:
        admin = caller.admin
        records = admin.audit(max(0, admin.audit_head().sequence - count))
    if json:
        for record in records:
            print(json_module.dumps(record))
    else:
        for record in records:
            for line in record_lines(record):
                print(plain(line))


def _heads(path: str, pinned: Pinned) -> list[Head]:
    """The heads in a file: signed by the server, or plain, one on a line."""
    heads = []
    for number, line in enumerate(read_limited(path, _MAX_ANCHOR).splitlines(), 1):
        if not line.strip():
            continue
        try:
            members = parse_json(line)
        except ValueError as error:
            raise UsageError(f"{shown(path)}: line {number} {error}.") from None
        if set(members) == {"payload", "signature"}:
            heads.append(audit_head_of(members, pinned))
        elif type(members.get("sequence")) is int and isinstance(members.get("hash"), str):
            heads.append(Head(members["sequence"], members["hash"]))
        else:
            raise UsageError(f"{shown(path)}: line {number} is no head of an audit trail.")
    if not heads:
        raise UsageError(f"{shown(path)} has no head of an audit trail.")
    return heads


def _verify_from(records: Iterator[dict[str, Any]], known: Sequence[Head]) -> Head:
    """Verify records that may begin behind a head that is known, rather than at the first."""
    first = next(records, None)
    if first is None:
        return verify_chain((), known=known)
    before = [head for head in known if head.sequence + 1 == first.get("sequence")]
    return verify_chain(chain([first], records), before[0] if before else GENESIS, known)


def verify(
    records: Annotated[
        str | None,
        typer.Option(
            "--records",
            metavar="FILE",
            show_default=False,
            help="Exported records, verified without a server; those of the server, if not given.",
        ),
    ] = None,
    anchor: Annotated[
        list[str] | None,
        typer.Option(
            "--anchor",
            metavar="FILE",
            show_default=False,
            help="Heads that were kept elsewhere, through which the chain must lead. Can be repeated.",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Compute the chain of audit records again, and compare it with the heads that are known.

    A record that was changed, left out, added or cut off is named, with exit code 5. Exported records
    without a head could be cut off at their end by anybody: give the head that was kept.
    """
    if records is not None:
        pinned = load_profile(server)
        known = [head for path in anchor or () for head in _heads(path, pinned)]
        with os_errors(shown(records)), open(records, "rb") as file:
            end = _verify_from(records_of(file), known)
    else:
        with open_admin(server, token_file) as caller:
            known = [head for path in anchor or () for head in _heads(path, caller.profile)]
            known.append(caller.admin.audit_head())
            end = verify_chain(caller.admin.audit_from(), known=known)
    if json:
        print_json({"whole": True, "records": end.sequence, "hash": end.hash, "heads": len(known)})
        return
    print(f"The audit trail is whole: {end.sequence} records, the last with the hash {end.hash}.")
    if not known:
        note("no head was given: records at the end may have been cut off.", label="warning: ")


def export(
    output: Output,
    after: Annotated[
        int, typer.Option("--after", metavar="N", min=0, help="Records after this number.")
    ] = 0,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="FILE",
            show_default=False,
            help="Where the signed head goes: keep it where the server's administrators cannot write.",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    force: Force = False,
    quiet: Quiet = False,
) -> None:
    """Write audit records, canonical JSON, one on each line, for audit verify and other programs."""
    with open_admin(server, token_file) as caller:
        signed = caller.admin.signed_head()
        audit_head_of(signed, caller.profile)
        count = _export(caller, output, after, force)
    if head is not None:
        _write(head, canonical_json(signed) + b"\n", force)
    if not quiet and output != "-":
        note(f"Wrote {count} audit records to {plain(output)}.")


def _export(caller: Caller, output: str, after: int, force: bool) -> int:
    out = open_file_output(output, overwrite=force, private=True)
    count = 0
    try:
        for record in caller.admin.audit_from(after):
            out.write(canonical_json(record) + b"\n")
            count += 1
        out.commit()
    except BaseException:
        out.abort()
        raise
    return count


def _write(path: str, content: bytes, force: bool) -> None:
    out = open_file_output(path, overwrite=force, private=True)
    try:
        out.write(content)
        out.commit()
    except BaseException:
        out.abort()
        raise


verb(app, "tail", tail, "strongroom audit tail -n 50\nstrongroom audit tail --json | jq .event")
verb(
    app,
    "verify",
    verify,
    "strongroom audit verify\nstrongroom audit verify --records audit.jsonl --anchor audit.head",
)
verb(app, "export", export, "strongroom audit export -o audit.jsonl --head audit.head")
