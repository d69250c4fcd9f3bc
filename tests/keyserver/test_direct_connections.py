"""Requests that come whole are answered as those that come in pieces, and take a shorter way."""

import asyncio
import json
from types import SimpleNamespace

import pytest
import uvicorn
from test_direct_routes import CASES, HASTY, JSON, LIMITS, REQUEST, Counts, Release, encoded
from test_tls_protocol import Transport
from uvicorn.server import ServerState

from strongroom.keyserver.app import make_app
from strongroom.keyserver.direct_routes import DirectRoutes
from strongroom.keyserver.guard import Guard
from strongroom.keyserver.tls import protocol_class
from strongroom.keyserver.tls_contexts import ClientCertificate

BODY = encoded(REQUEST)


class Late(Release):
    """Gives a release once it is told to."""

    def __init__(self):
        super().__init__(None)
        self.go_on = asyncio.Event()
        self.began = self.ended = 0

    async def release(self, asked, known, source):
        self.began += 1
        await self.go_on.wait()
        self.ended += 1
        return {"payload": source, "signature": str(len(known))}


def raw(method="POST", path="/v1/release", body=b"", headers=(JSON,), **_):
    lines = [f"{method} {path} HTTP/1.1\r\nhost: a".encode(), b"content-length: %d" % len(body)]
    return b"\r\n".join([*lines, *(b": ".join(one) for one in headers), b"", body])


class Talk:
    """A connection to a server whose core is ``release``.

    Attributes:
        long: how many requests went the long way.
    """

    def __init__(self, release, certificate=None, limits=LIMITS):
        self.counts, self.transport, self.long = Counts(), Transport(), 0
        here = SimpleNamespace(
            config=SimpleNamespace(limits=limits, auth=SimpleNamespace(mtls=[])),
            release=release,
            metrics=self.counts,
            identities=SimpleNamespace(of=lambda *shown: []),
            clock=lambda: None,
        )
        guard = Guard(DirectRoutes(make_app(here)), limits, self.counts)
        whole_way = guard.__class__.__call__

        async def app(scope, receive, send):
            self.long += 1
            await whole_way(guard, scope, receive, send)

        class Counted(Guard):
            async def __call__(self, scope, receive, send):
                await app(scope, receive, send)

        guard.__class__ = Counted
        made = protocol_class(limits, self.counts)
        made.connected = lambda self, transport: certificate
        config = uvicorn.Config(
            guard,
            http=made,
            lifespan="off",
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
        )
        config.load()
        self.state = ServerState()
        loop = asyncio.get_running_loop()
        self.protocol = config.http_protocol_class(config, self.state, {}, loop)
        self.protocol.connection_made(self.transport)

    def send(self, *parts):
        for part in parts:
            self.protocol.data_received(part)

    async def answers(self, count=1):
        """So many answers: status, headers but for the request's id, and body."""
        async with asyncio.timeout(60):
            while len(self.written) < count:
                await asyncio.sleep(0)
        assert len(self.written) == count
        found = []
        for one in self.written:
            head, _, body = one.partition(b"\r\n\r\n")
            status, *headers = head.split(b"\r\n")
            ids = [line for line in headers if line.startswith(b"x-request-id: ")]
            assert len(ids) == 1
            assert b"content-length: %d" % len(body) in headers
            # The long way has not read a body that it refuses.
            left = {*ids, b"connection: close"} if status.split()[1] in (b"413", b"429") else ids
            found.append((status, sorted(set(headers) - set(left)), body))
        return found

    @property
    def written(self):
        return [one for one in self.transport.done if isinstance(one, bytes)]


WHOLE = {name: case for name, case in CASES.items() if not case[0].get("more")}


@pytest.mark.parametrize("case", WHOLE)
def test_the_answer_is_that_of_the_long_way(case):
    given, status = WHOLE[case]
    request = raw(**{"method": "POST", **given})

    async def main(shorter):
        talk = Talk(Release(given.get("outcome")))
        if not shorter:
            talk.protocol._guard = None
        talk.send(request)
        (answer,) = await talk.answers()
        return answer, talk.counts.requests, talk.counts.early, talk.long

    short, long = asyncio.run(main(True)), asyncio.run(main(False))
    assert (short[0], short[2]) == (long[0], long[2])
    # Refused for its size alone, a request is of no path that is known.
    assert short[1] == long[1] or (long[1], status) == ([("other", "POST", 413)], 413)
    assert short[0][0].split()[1] == str(status).encode()
    assert long[3] == 1
    assert short[3] == (case.startswith("another") or "token" in case)


def test_what_is_asked_too_often_is_refused_on_either_way():
    async def main():
        talk = Talk(Release(None), limits=HASTY.__class__(requests_per_second=0.001, burst=2))
        challenge = raw(path="/v1/challenge", body=b"{}")
        for sent in ((challenge,), (challenge[:-1], b"}"), (challenge,), (challenge[:-1], b"}")):
            talk.send(*sent)
            await asyncio.sleep(0)
        answers = await talk.answers(4)
        assert [one[0].split()[1] for one in answers] == [b"200", b"200", b"429", b"429"]
        assert answers[2] == answers[3]
        assert talk.counts.early == {"too-many-requests": 2}

    asyncio.run(main())


@pytest.mark.parametrize(
    "headers",
    [
        (JSON, (b"authorization", b"Bearer x.y.z")),
        (JSON, JSON),
        (JSON, (b"x", b"1"), (b"X", b"2")),
        (JSON, (b"expect", b"100-continue")),
        (JSON, (b"connection", b"close")),
    ],
    ids=["token", "type twice", "another twice", "expects", "ends"],
)
def test_what_is_out_of_the_ordinary_goes_the_long_way(headers):
    async def main():
        talk = Talk(Release(None))
        talk.send(raw(body=BODY, headers=headers))
        async with asyncio.timeout(60):
            while not talk.written:
                await asyncio.sleep(0)
        assert talk.long == 1

    asyncio.run(main())


def test_so_does_a_body_in_chunks_and_a_client_with_a_certificate():
    async def main():
        talk = Talk(Release(None))
        chunked = raw(path="/v1/challenge").replace(b"content-length: 0", b"transfer-encoding: chunked")
        talk.send(chunked + b"2\r\n{}\r\n0\r\n\r\n")
        assert (await talk.answers())[0][0] == b"HTTP/1.1 200 OK"
        assert talk.long == 1
        talk = Talk(Late(), ClientCertificate(b"", b"", b""))
        talk.protocol.app.direct._app.state.services.release.go_on.set()
        talk.send(raw(body=BODY))
        assert (await talk.answers())[0][0] == b"HTTP/1.1 200 OK"
        assert talk.long == 1

    asyncio.run(main())


@pytest.mark.parametrize("cut", [1, 30, 130, -40, -1])
def test_a_request_in_pieces_is_whole_in_the_end(cut):
    async def main():
        talk = Talk(Release(None))
        request = raw(body=BODY)
        for _ in range(3):
            talk.send(request[:cut], request[cut:])
            await talk.answers(len(talk.written) + 1)
            talk.send(request)
            await talk.answers(len(talk.written) + 1)
        answers = await talk.answers(6)
        assert all(one == answers[0] for one in answers)
        assert talk.long == (0 if cut == 1 else 3) or cut == 30

    asyncio.run(main())


def test_answers_come_in_the_order_of_the_requests():
    async def main():
        late = Late()
        talk = Talk(late)
        challenge = raw(path="/v1/challenge", body=b"{}")
        release = raw(body=BODY)
        talk.send(challenge + release + challenge)
        talk.send(release)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(talk.written), late.began) == (1, 1)
        late.go_on.set()
        answers = await talk.answers(4)
        assert [b"challenge" in one[2] for one in answers] == [True, False, True, False]
        assert talk.long == 3
        talk.send(release)
        await talk.answers(5)
        assert (talk.long, late.ended) == (3, 3)

    asyncio.run(main())


def test_a_release_under_way_is_answered_when_the_server_stops_and_ends_the_connection():
    async def main():
        late = Late()
        talk = Talk(late)
        talk.send(raw(body=BODY))
        await asyncio.sleep(0)
        assert len(talk.state.tasks) == 1
        talk.protocol.shutdown()
        assert talk.transport.done == []
        late.go_on.set()
        ((status, headers, _),) = await talk.answers()
        assert (status, b"connection: close" in headers) == (b"HTTP/1.1 200 OK", True)
        assert talk.transport.done[-1] == "close"
        await asyncio.sleep(0)
        assert not talk.state.tasks

    asyncio.run(main())


@pytest.mark.parametrize("how", ["gone", "cancelled"])
def test_nobody_is_answered_who_is_gone(how):
    async def main():
        late = Late()
        talk = Talk(late)
        talk.send(raw(body=BODY))
        await asyncio.sleep(0)
        (task,) = talk.state.tasks
        if how == "gone":
            talk.protocol.connection_lost(None)
            late.go_on.set()
            await task
            # What was begun is brought to its end.
            assert late.ended == 1
            assert talk.counts.requests == [("/v1/release", "POST", 200)]
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert talk.counts.requests == [("/v1/release", "POST", None)]
        assert talk.written == []
        assert "close" in talk.transport.done

    asyncio.run(main())


def test_a_connection_that_is_refused_within_a_request_is_not_answered_any_more():
    async def main():
        talk = Talk(Release(None))
        talk.send(raw(body=BODY)[:-5] + b"", b"12345" + b"\x00 no request")
        async with asyncio.timeout(60):
            while "close" not in talk.transport.done:
                await asyncio.sleep(0)
        assert talk.counts.early["bad-request"] == 1

    asyncio.run(main())


def test_bodies_have_their_bounds_here_too():
    async def main():
        talk = Talk(Release(None))
        talk.send(raw(path="/v1/challenge", body=b" " * 1001))
        ((status, _, body),) = await talk.answers()
        assert (status.split()[1], talk.long) == (b"413", 0)
        assert json.loads(body)["error"]["code"] == "too-large"
        assert talk.counts.early == {"too-large": 1}

    asyncio.run(main())
