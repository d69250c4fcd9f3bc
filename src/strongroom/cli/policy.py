"""``strongroom policy``: write policies, try them on evidence, and bring them into force."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from strongroom.cli import policy_try
from strongroom.cli.policy_files import read_document, read_policy
from strongroom.cli.policy_server import register_server_verbs
from strongroom.cli.terminal import plain, print_json, report, shown
from strongroom.cli.verb import Group, Json, flag, verb
from strongroom.errors import InvalidPolicy, NotAcceptable
from strongroom.release.lint import Remark
from strongroom.release.lint import lint as remarks_on
from strongroom.release.messages import parse_time
from strongroom.release.policy import Policy

__all__ = ["app"]

_EXAMPLES = """
strongroom policy lint llama.json
strongroom policy lint llama.toml --strict --beside other.json
strongroom policy lint llama.json --json | jq -r '.remarks[].path'
"""


class _Policy(Group):
    examples = """
strongroom policy lint llama.json
strongroom policy explain llama.json --evidence tdx:quote.bin --endorsements collateral.json
strongroom policy test llama.json --evidence evidence.json --expect deny
strongroom policy put llama.json --server keyserver.json
"""


app = typer.Typer(
    name="policy",
    cls=_Policy,
    no_args_is_help=True,
    help="Policies: which machine may have which keys. Write, try and change them.",
)


def lint(
    file: policy_try.File,
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--beside",
            metavar="FILE",
            show_default=False,
            help="Another policy of the same server: two must not be about one key. Can be repeated.",
        ),
    ] = None,
    at: policy_try.At = None,
    strict: Annotated[bool, flag("--strict", help="Take warnings for errors.")] = False,
    json: Json = False,
) -> None:
    """Say what is wrong with a policy, and what may not be meant.

    Errors are what a server refuses: all of them are told, each with the path of the member. Warnings
    are what is allowed and should be meant, such as a policy without a list of platforms.
    """
    document = read_document(file)
    others = [read_policy(one) for one in beside or ()]
    now = datetime.now(UTC) if at is None else parse_time(at, "--at")
    remarks = remarks_on(document, now=now, others=others)
    errors = [remark for remark in remarks if remark.level == "error"]
    policy = None if errors else Policy.parse(document)
    if json:
        print_json(
            {
                "valid": not errors,
                "digest": None if policy is None else policy.digest.hex(),
                "remarks": [remark.to_json() for remark in remarks],
            }
        )
    else:
        _print(file, policy, remarks)
    if errors:
        raise InvalidPolicy(errors[0].path, _problem(errors[0]), hint=_more(len(errors) - 1))
    if strict and remarks:
        raise NotAcceptable("The policy is valid, and there are warnings.")


def _problem(error: Remark) -> str:
    # Its hint was printed with it.
    return error.text.removeprefix(f"{error.path} ").partition(". ")[0].rstrip(".")


def _more(count: int) -> str | None:
    return None if count < 1 else "One more error." if count == 1 else f"{count} more errors."


def _print(file: str, policy: Policy | None, remarks: list[Remark]) -> None:
    styles = {"error": "bold red", "warning": "bold yellow"}
    with report() as out:
        if policy is None:
            out.print(Text.assemble((shown(file, "standard input"), "bold"), ": not accepted"))
        else:
            what = f": {policy.id} version {policy.version}, SHA-256 {policy.digest.hex()}"
            out.print(Text.assemble((shown(file, "standard input"), "bold"), plain(what)))
        for remark in remarks:
            said = (
                remark.text if remark.text.startswith(remark.path) else f"{remark.path}: {remark.text}"
            )
            out.print(
                Text.assemble((f"  {remark.level:<8} ", styles[remark.level]), plain(said)),
                soft_wrap=True,
            )
        if policy is not None and not remarks:
            out.print(Text("  no remarks", "green"))


verb(app, "lint", lint, _EXAMPLES)
policy_try.register(app)
register_server_verbs(app)
