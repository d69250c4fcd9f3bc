"""A TLS context that stands for the newest one."""

from __future__ import annotations

import ssl
from typing import Any

__all__ = ["NewestContext"]


class NewestContext(ssl.SSLContext):
    """What a listener holds: each connection is made from the context that is current then.

    OpenSSL can add to what a context believes and take nothing away, so a change makes a new one.
    """

    current: ssl.SSLContext

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self.current.wrap_bio(*arguments, **options)
