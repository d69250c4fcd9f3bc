"""``strongroom plumbing``: for people who must look inside."""

from __future__ import annotations

import typer

from strongroom.cli.plumbing import header, probe, tink_keyset, vectors
from strongroom.cli.verb import Group

__all__ = ["app"]


class _Plumbing(Group):
    examples = """
strongroom plumbing header model.pt.sealed
strongroom plumbing tink-keyset model.pt.sealed -k key.txt -o keyset.json
strongroom plumbing vectors vectors/
strongroom plumbing probe http://127.0.0.1:8501/readyz
"""


app = typer.Typer(
    name="plumbing", cls=_Plumbing, no_args_is_help=True, help="For people who must look inside."
)
for _module in (header, tink_keyset, vectors, probe):
    _module.register(app)
