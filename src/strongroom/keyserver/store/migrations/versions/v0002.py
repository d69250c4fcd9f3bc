"""The newest revocation lists that were seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make their table; what the server has signed stays as it is while it is empty."""
    op.create_table(
        "crls",
        sa.Column("issuer", sa.String(300), primary_key=True),
        sa.Column("number", sa.String(40), nullable=False),
    )
