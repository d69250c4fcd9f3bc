"""Good requests with some bytes changed: refused in order or answered, never a fault of the server."""

from __future__ import annotations

import random
from collections import Counter

import grpc
import pytest
from in_process import FAULTS, callee, grpc_seeds, rest_seeds
from sealed_server import Serve

GRPC, REST = grpc_seeds(), rest_seeds()
METHODS = sorted({method for method, _ in GRPC})
ROUNDS = 100

_TELLING = (
    b"",
    b"\0",
    b"\xff",
    b"\x80" * 9 + b"\x01",
    b"-1",
    b"9" * 30,
    b"1e999",
    b"NaN",
    b"null",
    b"{}",
    b"[[",
)


def mutated(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """Up to four changes: of a bit, a piece that goes, comes twice, comes from another, or says much."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(made))
        end = min(len(made), at + chance.choice((0, 1, 1, 2, 4, 16)))
        match chance.randrange(5):
            case 0 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at:end]
            case 2:
                made[at:at] = made[at:end] * chance.choice((1, 2, 50))
            case 3:
                other = chance.choice(others)
                begin = chance.randint(0, len(other))
                made[at:end] = other[begin : begin + chance.choice((1, 4, 32))]
            case _:
                made[at:end] = chance.choice(_TELLING)
    return bytes(made)


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    with callee(tmp_path_factory.mktemp("mutations")) as made:
        yield made


def test_the_seeds_are_good(called):
    for method, data in GRPC:
        code, found = called.grpc(method, data)
        # The one dtype that the other protocol has no word for is not among the seeds.
        assert code is None, (method, found)
    for one in REST:
        assert called.rest(*one)[0] == 200, one


@pytest.mark.parametrize("method", METHODS, ids=lambda one: one.rpartition("/")[2])
def test_grpc(called, method):
    chance = random.Random(method)
    seeds = [data for name, data in GRPC if name == method]
    others = [data for _, data in GRPC]
    codes = Counter()
    for _ in range(ROUNDS):
        for data in seeds:
            codes[called.check_grpc(method, mutated(data, others, chance))] += 1
    assert codes


@pytest.mark.parametrize("number", range(len(REST)))
def test_rest(called, number):
    method, path, headers, body = REST[number]
    chance = random.Random(number)
    others = [one[3] for one in REST]
    statuses = Counter()
    for _ in range(10 * ROUNDS):
        changed = {name: mutated(value, [b"7"], chance) for name, value in headers.items()}
        if chance.random() < 0.5:
            changed = headers
        wrong = mutated(body, others, chance)
        way = path
        if not body or chance.random() < 0.1:
            way = path[:4] + mutated(path[4:].encode(), [b"/"], chance).decode("utf-8", "replace")
        statuses[called.check_rest(method, way, changed, wrong)] += 1
    assert len(statuses) > 1 or not body


def test_over_the_wire(tmp_path):
    """The same against the real server: it answers each, and stays as it was."""
    server = Serve.of_all(tmp_path)
    chance = random.Random(0)
    others = [data for _, data in GRPC]
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc}") as channel:
            for _ in range(8):
                for method, data in GRPC:
                    if method.endswith("ModelStreamInfer"):
                        continue
                    try:
                        channel.unary_unary(method)(mutated(data, others, chance), timeout=60)
                    except grpc.RpcError as error:
                        assert error.code().value[0] not in FAULTS, error.details()
        server.check_health()
    finally:
        server.kill()
