"""The places of root keys, each with ``open_kek`` and ``create_kek``; imported when used."""
