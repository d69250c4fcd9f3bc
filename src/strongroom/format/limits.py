"""Every number that a file can say is bounded here, before it is used."""

from __future__ import annotations

from typing import Final

HEADER_ALIGNMENT: Final = 4096
"""The header area is a multiple of a page, so that the payload starts on one (FORMAT: layout)."""

MAX_HEADER_AREA: Final = 1 << 20
"""1 MiB: some 600 post-quantum recipients; a reader allocates no more for a hostile header."""

MIN_SEGMENT: Final = 1 << 16
MAX_SEGMENT: Final = 1 << 24
DEFAULT_SEGMENT: Final = 1 << 20
"""1 MiB is on the plateau of AES-GCM's speed and fits the L2 cache; a reader's scratch is one segment."""

MAX_JSON_DEPTH: Final = 32
"""Objects and arrays inside one another: nobody needs more in ``meta``, and a parser's stack is finite."""

MAX_SEGMENTS: Final = 1 << 32
"""The nonce holds the number of a segment in 32 bits."""

MAX_PATH: Final = 1024
"""Bytes of UTF-8 in a path; the common PATH_MAX of 4096 leaves room for the directory around it."""

MAX_MANIFEST: Final = 64 << 20
"""64 MiB of JSON: some 400 000 files; parsed into memory as a whole."""

MAX_ARGON2_MEMORY: Final = 1 << 20
"""KiB, so 1 GiB: a hostile header cannot make a reader allocate more."""

MAX_ARGON2_PASSES: Final = 16
MAX_ARGON2_LANES: Final = 16
"""With the memory bound, some ten seconds of one core at the worst."""

MAX_PASSPHRASES: Final = 8
"""Passphrase recipients in one header: each costs a reader a whole Argon2id."""

MAX_KEY_FILE: Final = 1 << 16
"""Bytes of a key file; a model given as a key by mistake is refused without being read."""
