"""``strongroom attest sgx-measure``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.text import Text

from strongroom.attest.sgx_measure import SIZE, EnclaveSignature
from strongroom.cli.attest_files import read_limited
from strongroom.cli.attest_show import flat, value_rows
from strongroom.cli.terminal import note, plain, print_json, report, shown
from strongroom.cli.verb import Json, flag, verb
from strongroom.errors import UsageError
from strongroom.release.policy import Policy

__all__ = ["register"]

_EXAMPLES = """
strongroom attest sgx-measure serve.sig
strongroom attest sgx-measure serve.sig --json | jq -r .mr_enclave
strongroom attest sgx-measure serve.sig --policy resnet-sgx --keys models/resnet/ > resnet-sgx.json
"""


def sgx_measure(
    file: Annotated[
        str,
        typer.Argument(
            metavar="SIG", show_default=False, help="SIGSTRUCT, as gramine-sgx-sign writes it."
        ),
    ],
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            metavar="ID",
            show_default=False,
            help="Write a policy of this name for this enclave, instead of what the file says.",
        ),
    ] = None,
    keys: Annotated[
        list[str] | None,
        typer.Option(
            "--keys",
            metavar="NAME",
            show_default=False,
            help="Key that the policy is about, or with / at the end all whose names begin so; by "
            "default the one that is called as the policy. Can be repeated.",
        ),
    ] = None,
    version: Annotated[
        int, typer.Option("--policy-version", metavar="N", min=1, help="Version of the policy.")
    ] = 1,
    by_signer: Annotated[
        bool,
        flag(
            "--by-signer",
            help="The policy takes every enclave of this signer and product that is no older than this.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Show the measurement of an SGX enclave from its signature, or write a policy for it.

    The signature is verified: it says who signed, and that nothing was changed since. Whether mr_signer
    is yours is for you to compare.
    """
    enclave = EnclaveSignature.parse(read_limited(file, 2 * SIZE))
    if policy is None:
        if keys or by_signer or version != 1:
            raise UsageError("--keys, --policy-version and --by-signer go with --policy.")
        _show(file, enclave, json)
        return
    document: dict[str, Any] = {
        "id": policy,
        "version": version,
        "keys": list(keys or [policy]),
        "any": [enclave.requirement(by_signer=by_signer)],
    }
    Policy.parse(document)
    print_json(document)
    if enclave.privileges:
        note(f"the enclave may ask the platform for {', '.join(enclave.privileges)}.", label="note: ")


def _show(file: str, enclave: EnclaveSignature, json: bool) -> None:
    values = {
        "mr_enclave": enclave.values["mr_enclave"],
        "mr_signer": enclave.values["mr_signer"],
        **enclave.values,
        "debug": enclave.debug,
        "privileges": list(enclave.privileges),
    }
    if json:
        print_json(values)
        return
    with report() as out:
        out.print(Text.assemble((shown(file), "bold"), ": enclave signature, correctly signed"))
        out.print(value_rows(flat(values)))
        if enclave.debug:
            out.print(
                Text(plain("for debugging: no policy lets such an enclave have keys"), "bold red")
            )


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "sgx-measure", sgx_measure, _EXAMPLES)
