"""Alembic's migrations of the store. A schema once released is never edited: it gets a successor."""
