import asyncio

import pytest

from strongroom.keyserver.errors_http import HttpError
from strongroom.keyserver.limits import MAX_ADDRESSES, LimitedBody, RateLimit
from strongroom.web.addresses import ConnectionCount, source_group


def test_a_burst_then_the_rate():
    limit = RateLimit(rate=2, burst=3)
    for _ in range(3):
        limit.take("a", 100.0)
    with pytest.raises(HttpError) as caught:
        limit.take("a", 100.0)
    assert caught.value.status == 429
    assert caught.value.retry_after == 1
    limit.take("b", 100.0)
    limit.take("a", 100.5)
    with pytest.raises(HttpError):
        limit.take("a", 100.5)


def test_what_is_saved_is_no_more_than_the_burst():
    limit = RateLimit(rate=10, burst=2)
    limit.take("a", 0.0)
    for _ in range(2):
        limit.take("a", 1e6)
    with pytest.raises(HttpError):
        limit.take("a", 1e6)


def test_refused_requests_cost_nothing_more():
    limit = RateLimit(rate=1, burst=1)
    limit.take("a", 0.0)
    for _ in range(100):
        with pytest.raises(HttpError):
            limit.take("a", 0.5)
    limit.take("a", 1.0)


def test_addresses_are_forgotten_rather_than_kept_without_bound():
    limit = RateLimit(rate=1, burst=1)
    for number in range(MAX_ADDRESSES + 100):
        limit.take(str(number), 0.0)
    assert len(limit._buckets) == MAX_ADDRESSES


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("local", "local"),
    ],
)
def test_source_group(host, group):
    assert source_group(host) == group


def test_connections_of_one_address_and_of_all():
    count = ConnectionCount(per_address=2, total=3)
    assert [count.enter("a"), count.enter("a"), count.enter("a")] == [True, True, False]
    assert [count.enter("b"), count.enter("c")] == [True, False]
    count.leave("a")
    assert count.enter("c")
    for source in ("a", "b", "c"):
        count.leave(source)
    assert not count._open
    assert count.enter("a")


def body(chunks, headers=(), limit=10, seconds=5.0):
    waiting = list(chunks)

    async def receive():
        if not waiting:
            await asyncio.sleep(60)
        part, more = waiting.pop(0)
        return {"type": "http.request", "body": part, "more_body": more}

    return LimitedBody({"headers": list(headers)}, receive, limit, seconds)


CHUNKED = ((b"transfer-encoding", b"chunked"),)


def test_a_declared_size_is_refused_before_a_byte_is_read():
    with pytest.raises(HttpError) as caught:
        body([], [(b"content-length", b"11")])
    assert caught.value.status == 413


@pytest.mark.parametrize("size", [b"9" * 5000, b"-1", b"1e3", b"", b"+5", "٣".encode()])
def test_a_size_that_is_none_is_refused(size):
    with pytest.raises(HttpError):
        body([], [(b"content-length", size)])


def test_a_chunked_body_is_counted_while_it_comes():
    limited = body([(b"12345", True), (b"123456", True)], CHUNKED)

    async def read():
        await limited()
        await limited()

    with pytest.raises(HttpError) as caught:
        asyncio.run(read())
    assert caught.value.status == 413
    assert not limited.complete


def test_the_whole_body_has_one_deadline():
    async def drip():
        await asyncio.sleep(0.03)
        return {"type": "http.request", "body": b"x", "more_body": True}

    limited = LimitedBody({"headers": list(CHUNKED)}, drip, 10_000, 0.2)

    async def read():
        for _ in range(100):
            await limited()

    with pytest.raises(HttpError) as caught:
        asyncio.run(read())
    assert caught.value.status == 408


def test_a_body_within_the_limits():
    limited = body([(b"12345", True), (b"12345", False)], CHUNKED)

    async def read():
        return [await limited(), await limited()]

    assert b"".join(part["body"] for part in asyncio.run(read())) == b"1234512345"
    assert limited.complete
    assert body([]).complete
