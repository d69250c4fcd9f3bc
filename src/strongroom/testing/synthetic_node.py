"""A machine with a TEE that there is not: what ``exec:`` collectors run in tests and demonstrations.

::

    python -m strongroom.testing.synthetic_node DIR --init
    python -m strongroom.testing.synthetic_node DIR --mr-td 00…00 < report-data.hex > evidence.json

The first makes a PKI under a test root in DIR. The second answers report data, a line of hexadecimal
digits on standard input, with evidence of a trust domain (or, with ``--kind sgx``, of an enclave) and
its collateral, as JSON. It verifies where DIR's test root is believed, and nowhere else.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from strongroom.attest.evidence import Evidence
from strongroom.errors import StrongroomError
from strongroom.testing.intel import ROOT_FILE, IntelPki

__all__ = ["main"]

_TD = (
    "mr_td",
    "rtmr0",
    "rtmr1",
    "rtmr2",
    "rtmr3",
    "mr_config_id",
    "mr_owner",
    "mr_owner_config",
    "mr_seam",
)
_SGX = ("mr_enclave", "mr_signer")


def _hex(size: int) -> Callable[[str], bytes]:
    def parse(text: str) -> bytes:
        data = bytes.fromhex(text)
        if len(data) != size:
            raise ValueError
        return data

    parse.__name__ = f"{size} bytes in hexadecimal"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m strongroom.testing.synthetic_node",
        description="Evidence under a TEST ROOT, for tests and demonstrations.",
    )
    parser.add_argument("directory", help="where the PKI lies")
    parser.add_argument("--init", action="store_true", help="make the PKI and stop")
    parser.add_argument("--kind", choices=("tdx", "sgx"), default="tdx")
    parser.add_argument("--debug", action="store_true", help="a machine that can be looked into")
    parser.add_argument("--tcb-status", default="UpToDate", help="what its collateral says")
    parser.add_argument("--ppid", type=_hex(16), help="with --init: identity of the machine")
    for name in _TD:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_hex(48), metavar="HEX")
    for name in _SGX:
        parser.add_argument(f"--{name.replace('_', '-')}", type=_hex(32), metavar="HEX")
    for name in ("isv_prod_id", "isv_svn"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    return parser


def _evidence(arguments: argparse.Namespace, report_data: bytes, now: datetime) -> Evidence:
    pki = IntelPki.load(arguments.directory)
    names = _TD if arguments.kind == "tdx" else (*_SGX, "isv_prod_id", "isv_svn")
    given = {name: getattr(arguments, name) for name in names}
    parts: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    quote = pki.tdx_quote if arguments.kind == "tdx" else pki.sgx_quote
    collateral = pki.collateral(
        arguments.kind, status=arguments.tcb_status, issued=now - timedelta(minutes=5)
    )
    return Evidence(arguments.kind, quote(report_data, debug=arguments.debug, **parts), (collateral,))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        if arguments.init:
            identity = {} if arguments.ppid is None else {"ppid": arguments.ppid}
            IntelPki.create(now, **identity).save(arguments.directory)
            print(f"{arguments.directory}/{ROOT_FILE}")
            return 0
        try:
            report_data = bytes.fromhex(sys.stdin.readline().strip())
        except ValueError:
            report_data = b""
        if not 0 < len(report_data) <= 64:
            parser.error("standard input is not a line of up to 64 bytes in hexadecimal")
        print(json.dumps(_evidence(arguments, report_data, now).to_json()))
    except StrongroomError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
