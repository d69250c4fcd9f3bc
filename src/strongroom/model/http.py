"""Files on a web server, by range requests straight into the reader's memory.

fsspec keeps the session and its options (headers, proxies, certificates). The requests are made
here, because its own read a body of any length that a server cares to send, retry nothing, and ask
with HEAD for the size, which URLs that are signed for GET refuse.
"""

from __future__ import annotations

import re
import time
from typing import Any, Final

from strongroom.errors import (
    NotFound,
    StorageError,
    StrongroomError,
    Truncated,
    UsageError,
)
from strongroom.model.location import join, public
from strongroom.model.ranges import HEAD_SIZE, RangeSource, file_system

__all__ = ["HttpSource", "HttpTree"]

RETRY_AFTER: Final = (0.25, 1.0, 2.5)
"""Seconds to wait before each further try of a request that failed for a passing reason."""

_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,20})-(\d{1,20})/(\d{1,20})")
# A link that sends nothing for a minute is dead; a slow one may take as long as it needs.
_CONNECT_TIMEOUT: Final = 30
_SILENCE_TIMEOUT: Final = 60


class _PassingError(Exception):
    """A failure that a retry may cure. The text is safe to show."""


class HttpSource(RangeSource):
    """One file on a web server that answers range requests."""

    def __init__(self, url: str) -> None:
        super().__init__(public(url))
        self._url = url
        self._fs, _ = file_system(url)
        # One request tells that it is there, its size, and that ranges work, and has the header.
        head = memoryview(bytearray(HEAD_SIZE))
        self.size = self._request(0, head, None)
        self._head = head[: self.size]

    def _fetch(self, offset: int, out: memoryview) -> None:
        self._request(offset, out, self.size)

    def _request(self, offset: int, out: memoryview, size: int | None) -> int:
        """Fill ``out`` as far as the file goes; returns the size of the file."""
        from fsspec.asyn import sync

        for wait in (*RETRY_AFTER, None):
            try:
                return int(sync(self._fs.loop, self._get, offset, out, size))
            except _PassingError as error:
                if wait is None:
                    raise StorageError(
                        f"{self.name}: {error}, {len(RETRY_AFTER) + 1} times.",
                        hint="Check the network and the address, and try again.",
                    ) from None
            time.sleep(wait)
        raise AssertionError  # the loop ends by returning or raising

    async def _get(self, offset: int, out: memoryview, size: int | None) -> int:
        import aiohttp
        import yarl

        options = dict(self._fs.kwargs)
        headers = {
            **options.pop("headers", {}),
            "Range": f"bytes={offset}-{offset + len(out) - 1}",
            "Accept-Encoding": "identity",
        }
        if "timeout" not in self._fs.client_kwargs:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT, sock_read=_SILENCE_TIMEOUT
            )
            options.setdefault("timeout", timeout)
        # What needs no encoding goes out as it is: a signature covers the exact bytes.
        encoded = bool(self._fs.encoded or re.fullmatch(r"[!-~]+", self._url))
        try:
            address = yarl.URL(self._url, encoded=encoded)
            try:
                session = await self._fs.set_session()
                answer = session.get(address, headers=headers, **options)
            except TypeError:
                raise UsageError(
                    "The options that fsspec is configured with for HTTP cannot be used.",
                    hint="Look at FSSPEC_HTTP and ~/.config/fsspec; client_kwargs holds those of the session.",
                ) from None
            async with answer as response:
                return await self._receive(response, offset, out, size)
        except (StrongroomError, _PassingError):
            raise
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError):
            raise StorageError(
                f"{self.name}: no trusted TLS connection can be made.",
                hint="Check the server's certificate and this machine's clock.",
            ) from None
        except (aiohttp.InvalidURL, ValueError):
            raise UsageError(f"{self.name} is not a valid URL.") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise _PassingError(f"the request failed ({type(error).__name__})") from None
        except aiohttp.ClientError as error:
            raise StorageError(f"{self.name}: the request failed ({type(error).__name__}).") from None

    async def _receive(self, response: Any, offset: int, out: memoryview, size: int | None) -> int:
        total = self._check(response, offset, out, size)
        expected = min(len(out), total - offset)
        done = 0
        if expected > 0:
            async for chunk in response.content.iter_any():
                if done + len(chunk) > expected:
                    raise StorageError(f"{self.name}: the server sent more than was asked for.")
                out[done : done + len(chunk)] = chunk
                done += len(chunk)
        if done < expected:
            raise _PassingError(f"the server sent {done} of {expected} bytes")
        return total

    def _check(self, response: Any, offset: int, out: memoryview, size: int | None) -> int:
        """The size of the file, from an answer that is the range that was asked for."""
        status = response.status
        if status in _PASSING:
            raise _PassingError(f"the server answered {status}")
        if status in {404, 410}:
            raise NotFound(f"{self.name}: nothing is there.")
        if status in {401, 403, 407}:
            raise UsageError(f"{self.name}: access is denied.", hint="Check the credentials.")
        if status == 416 or (status == 200 and response.content_length == 0):
            if size:
                raise Truncated(f"{self.name} ends before {offset}, and was longer when it was opened.")
            return 0
        if status == 200 or response.headers.get("Content-Encoding", "identity") != "identity":
            raise UsageError(
                f"{self.name}: the server does not answer range requests.",
                hint="Fetch the model with another program and open the local copy.",
            )
        if status != 206:
            raise StorageError(f"{self.name}: the server answered {status}.")
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None:
            raise UsageError(
                f"{self.name}: the server does not say how large the file is.",
                hint="Fetch the model with another program and open the local copy.",
            )
        first, last, total = map(int, match.groups())
        if size is not None and total < size:
            raise Truncated(f"{self.name} has {total} bytes now, and had {size} when it was opened.")
        if first != offset or last + 1 != min(offset + len(out), total):
            raise StorageError(f"{self.name}: the server sent another range than was asked for.")
        return total


class HttpTree:
    """A sealed directory on a web server: its files are known from the manifest alone."""

    def __init__(self, url: str) -> None:
        self.name = public(url)
        self._url = url

    def sizes(self) -> None:
        return None

    def source(self, path: str) -> HttpSource:
        return HttpSource(join(self._url, path))

    def close(self) -> None:
        pass
