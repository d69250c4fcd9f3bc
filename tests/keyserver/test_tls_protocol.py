"""The protocol on a transport that is none: in how many pieces an answer goes out, and to whom no longer."""

import asyncio
from collections import Counter

import pytest
import uvicorn
from uvicorn.server import ServerState

from strongroom.keyserver.metrics import Metrics
from strongroom.keyserver.settings import Limits
from strongroom.keyserver.tls import protocol_class


class Transport(asyncio.Transport):
    def __init__(self):
        super().__init__({"peername": ("192.0.2.1", 5), "sockname": ("192.0.2.2", 443)})
        self.done = []
        self.unsent = 0

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.done.append(bytes(data))

    def close(self):
        self.done.append("close")

    def abort(self):
        self.done.append("abort")

    def is_closing(self):
        return "close" in self.done or "abort" in self.done

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


class Counts(Metrics):
    def __init__(self):
        super().__init__()
        self.early = Counter()

    def refused_early(self, why):
        self.early[why] += 1


def talk(app, data, limits=None, during=None):
    """What is done to the transport after ``data`` has come; and what was counted."""

    async def main():
        metrics, transport = Counts(), Transport()
        config = uvicorn.Config(
            app,
            http=protocol_class(limits or Limits(), metrics),
            lifespan="off",
            log_config=None,
            server_header=False,
            date_header=False,
        )
        config.load()
        protocol = config.http_protocol_class(config, ServerState(), {}, asyncio.get_running_loop())
        protocol.connection_made(transport)
        for part in [data] if isinstance(data, bytes) else data:
            protocol.data_received(part)
            # Turns of the loop, which are as many on a busy machine; a while may hold one or two.
            for _ in range(50):
                await asyncio.sleep(0)
        if during is not None:
            await during(protocol, transport)
        done = list(transport.done)
        protocol.connection_lost(None)
        await asyncio.sleep(0)
        return done, metrics.early

    return asyncio.run(main())


def answering(*parts, size=None):
    async def app(scope, receive, send):
        total = sum(map(len, parts)) if size is None else size
        await receive()
        headers = [(b"content-length", b"%d" % total)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, part in enumerate(parts, 1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    return app


GET = b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"


def test_an_answer_is_one_write():
    assert talk(answering(b"hello"), GET)[0] == [HEAD % 5 + b"hello"]


def test_so_is_every_one_of_several_on_one_connection():
    assert talk(answering(b"hello"), [GET, GET, GET])[0] == [HEAD % 5 + b"hello"] * 3
    assert talk(answering(b"hello"), GET * 3)[0] == [HEAD % 5 + b"hello"] * 3


def test_a_body_that_looks_like_a_head_is_a_body():
    parts = (b"HTTP/1.1 200 OK", b"HTTP/1.1 100 Continue")
    assert talk(answering(*parts), GET)[0] == [HEAD % 36 + parts[0], parts[1]]


@pytest.mark.parametrize(("method", "body"), [(b"HEAD", b"hello"), (b"GET", b"")])
def test_an_answer_without_a_body_goes_out_too(method, body):
    data = GET.replace(b"GET", method)
    assert talk(answering(body), [data, data])[0] == [HEAD % len(body)] * 2


def test_an_answer_goes_out_before_the_connection_is_closed():
    data = GET.replace(b"host", b"connection: close\r\nhost")
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n"
    assert talk(answering(b"hello"), data)[0] == [head + b"hello", "close"]
    head = head.replace(b"5", b"0")
    assert talk(answering(b""), data)[0] == [head, "close"]


def test_an_answer_that_breaks_off_ends_the_connection():
    assert talk(answering(b"hell", size=5), GET)[0] == [HEAD % 5 + b"hell", "close"]


def test_who_waits_to_be_told_to_continue_is_told():
    head = b"POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\nexpect: 100-continue\r\n\r\n"
    go_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert talk(answering(b"hello"), [head])[0] == [go_on]
    whole = [go_on, HEAD % 5 + b"hello"]
    assert talk(answering(b"hello"), [head, b"x"])[0] == whole
    assert talk(answering(b"hello"), [head, b"x", head, b"x"])[0] == whole * 2


CHUNKED = b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "parts",
    [
        [b"1\r\nx\r\n0\r\n", b"a: b\r\nc: d\r\n"],
        [b"1\r\nx\r\n0\r\na: ", *[b"b" * 16384] * 3],
        [b"1;", *[b"e" * 16384] * 3],
        [b"1;eeeeee\r\nx\r\n" * 1000] * 5,
    ],
    ids=["trailer", "endless trailer", "endless extension", "extensions"],
)
def test_what_is_not_body_has_a_bound(parts):
    done, early = talk(echo, [CHUNKED, *parts])
    assert done[-2].startswith(b"HTTP/1.1 400 ") and done[-1] == "close"
    assert early == {"bad-request": 1}


def test_a_large_body_in_chunks_is_a_body():
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    done, early = talk(echo, [CHUNKED, *[chunk] * 128, b"0\r\n\r\n", GET])
    assert [one[:12] for one in done] == [b"HTTP/1.1 200"] * 2
    assert b"content-length: 7\r\n" in done[0] and done[0].endswith(b"2097152")
    assert not early


OFFER = b"POST /x HTTP/1.1\r\nhost: a\r\nconnection: Upgrade, HTTP2-Settings%b\r\nupgrade: h2c\r\n"
OFFER += b"http2-settings: AAMAAABk\r\ncontent-length: %d\r\n\r\n"


@pytest.mark.parametrize("body", [b"x" * 100, b"", b"GET /hidden HTTP/1.1\r\nhost: a\r\n\r\n"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_request_that_offers_another_protocol_keeps_its_body(body, pieces):
    head = OFFER % (b"", len(body))
    whole = head + body + GET
    cut = {1: [whole], 2: [head, body + GET], 3: [head[:60], head[60:] + body[:9], body[9:] + GET]}
    done, early = talk(echo, cut[pieces])
    assert done == [HEAD % len(size) + size for size in (b"%d" % len(body), b"0")]
    assert not early


def test_an_offer_over_and_over_and_one_with_an_end():
    assert talk(echo, (OFFER % (b"", 1) + b"x") * 3)[0] == [HEAD % 1 + b"1"] * 3
    done = talk(echo, OFFER % (b", close", 1) + b"x")[0]
    assert done == [b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\nconnection: close\r\n\r\n1", "close"]


@pytest.mark.parametrize(
    "head", [b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /x HTTP/1.0\r\nhost: a\r\n\r\n"]
)
def test_what_is_not_spoken(head):
    done, early = talk(echo, head)
    assert done[-2].startswith(b"HTTP/1.1 400 ") and done[-1] == "close"
    assert early == {"bad-request": 1}


async def echo(scope, receive, send):
    """Says how large the body is."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    said = b"%d" % size
    headers = [(b"content-length", b"%d" % len(said))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": said})


def test_a_client_that_does_not_read_is_dropped():
    async def during(protocol, transport):
        protocol.pause_writing()
        assert "abort" not in transport.done
        async with asyncio.timeout(30):
            while "abort" not in transport.done:
                await asyncio.sleep(0.01)

    done, early = talk(answering(b"hello"), GET, Limits(answer_seconds=0.05), during)
    assert done[-1] == "abort"
    assert early == {"does-not-read": 1}


@pytest.mark.parametrize("ends", ["resume_writing", "connection_lost"])
def test_a_client_that_reads_in_time_is_not(ends):
    async def during(protocol, transport):
        protocol.pause_writing()
        # At once: on a busy machine any moment of waiting may be longer than the limit.
        getattr(protocol, ends)(*[None] * (ends == "connection_lost"))
        await asyncio.sleep(0.1)

    done, early = talk(answering(b"hello"), GET, Limits(answer_seconds=0.05), during)
    assert "abort" not in done
    assert early == {}


def test_a_server_that_stops_waits_for_no_goodbye_of_an_idle_connection():
    async def stop(protocol, transport):
        protocol.shutdown()
        async with asyncio.timeout(30):
            while "abort" not in transport.done:
                await asyncio.sleep(0.01)

    assert talk(answering(b"hello"), GET, during=stop)[0][1:] == ["close", "abort"]
    assert talk(answering(), b"", during=stop)[0] == ["close", "abort"]


@pytest.mark.parametrize("unsent", [0, 1])
def test_nor_is_an_answer_cut_off(monkeypatch, unsent):
    monkeypatch.setattr("strongroom.web.protocol._GOODBYE", 0.0)
    going = asyncio.Event()

    async def app(scope, receive, send):
        await receive()
        await going.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    async def stop(protocol, transport):
        transport.unsent = unsent
        protocol.shutdown()
        assert transport.done == []
        going.set()
        async with asyncio.timeout(30):
            while "close" not in transport.done:
                await asyncio.sleep(0.01)
        protocol.shutdown()
        for _ in range(3):
            await asyncio.sleep(0)

    # What a slow client has not taken is still on its way.
    assert ("abort" in talk(app, GET, during=stop)[0]) is not bool(unsent)
