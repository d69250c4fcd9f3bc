"""The places of root keys, each with ``needs_passphrase``, ``open_kek`` and ``create_kek``; imported when used."""
