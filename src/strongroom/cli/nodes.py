"""``strongroom nodes``: machines that get keys, and machines that get none."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Final

import typer

from strongroom.attest.limits import MAX_ENDORSEMENTS
from strongroom.cli.admin import Reason, Server, TokenFile, Yes, confirm, open_admin, print_rows
from strongroom.cli.attest_files import read_limited
from strongroom.cli.terminal import note, plain, print_json, shown
from strongroom.cli.verb import Group, Json, verb
from strongroom.errors import UsageError

__all__ = ["app"]

_COLUMNS = {
    "platform": "platform",
    "evicted": "evicted",
    "leases": "leases",
    "last seen": "last_seen",
    "reason": "reason",
}
_Platform = Annotated[
    str,
    typer.Argument(metavar="PLATFORM", show_default=False, help="A machine, as nodes list names it."),
]


_BOUND: Final = b"strongroom nodes enrol-tpm"
"""What the quote is bound to, which nobody looks at: the credential is what is answered."""


class _Nodes(Group):
    examples = """
strongroom nodes enrol-tpm
strongroom nodes list
strongroom nodes evict ppid:811dca2a26b952e85bb6448b097ba4fd --reason "stolen"
"""


app = typer.Typer(
    name="nodes",
    cls=_Nodes,
    no_args_is_help=True,
    help="Machines that a key server knows: that hold keys, are enrolled, or get none.",
)


def list_nodes(server: Server = None, token_file: TokenFile = None, json: Json = False) -> None:
    """List the machines that got keys, and those that were enrolled or evicted."""
    with open_admin(server, token_file) as caller:
        print_rows(caller.admin.nodes(), _COLUMNS, json, "nodes")


def evict(
    platform: _Platform,
    reason: Reason,
    server: Server = None,
    token_file: TokenFile = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Give a machine no key and no renewal from now on. It keeps what it has until its leases end."""
    confirm(f"{platform} stops when its leases end.", yes)
    with open_admin(server, token_file) as caller:
        known = {one.get("platform") for one in caller.admin.nodes()}
        caller.admin.evict(platform, reason)
    _done(platform, evicted=True, json=json)
    if platform not in known:
        note("no key was released to a machine of this name: is it spelled right?", label="warning: ")


def admit(
    platform: _Platform, server: Server = None, token_file: TokenFile = None, json: Json = False
) -> None:
    """Let an evicted machine ask for keys again."""
    with open_admin(server, token_file) as caller:
        caller.admin.admit(platform)
    _done(platform, evicted=False, json=json)


def enrol_tpm(
    source: Annotated[
        str,
        typer.Option("--from", metavar="SPEC", help="The TPM: tpm, tpm:TCTI, tpm;key=HANDLE."),
    ] = "tpm",
    endorsements: Annotated[
        list[str] | None,
        typer.Option(
            "--endorsements",
            metavar="FILE",
            show_default=False,
            help="Certificates between that of the TPM and the CA that the server believes. Can be "
            "repeated.",
        ),
    ] = None,
    server: Server = None,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Prove to the server that the attestation key of this machine lies in its TPM.

    Run it on the machine that is to be enrolled, as an operator. The certificate of the TPM's endorsement key must
    lead to a CA in attestation.tpm_cas of the server. Afterwards a policy can list the machine by the
    name that is printed, ak:….
    """
    from strongroom.attest.collect import open_collector
    from strongroom.attest.collect.tpm import TpmCollector

    collector = open_collector(source)
    if not isinstance(collector, TpmCollector):
        raise UsageError(f"{shown(source)} is no TPM.", hint="--from tpm:TCTI")
    above = tuple(read_limited(one, MAX_ENDORSEMENTS) for one in endorsements or ())
    evidence = collector.collect(_BOUND)
    evidence = replace(evidence, endorsements=(*evidence.endorsements, *above))
    with open_admin(server, token_file) as caller:
        made = caller.admin.enrol_tpm(evidence.to_json(), collector.activate)
    if json:
        print_json(made)
        return
    print(plain(made["platform"]))
    note("The key is in the TPM, whose maker vouches for it. Policies list the machine by this name.")


def _done(platform: str, *, evicted: bool, json: bool) -> None:
    if json:
        print_json({"platform": platform, "evicted": evicted})
    else:
        print(f"{plain(platform)} {'is evicted' if evicted else 'may ask again'}.")


verb(
    app,
    "enrol-tpm",
    enrol_tpm,
    "strongroom nodes enrol-tpm\nstrongroom nodes enrol-tpm --token-file operator.token --endorsements maker-intermediate.pem",
)
verb(app, "list", list_nodes, "strongroom nodes list\nstrongroom nodes list --json")
verb(
    app, "evict", evict, "strongroom nodes evict ppid:811dca2a26b952e85bb6448b097ba4fd --reason stolen"
)
verb(app, "admit", admit, "strongroom nodes admit ppid:811dca2a26b952e85bb6448b097ba4fd")
