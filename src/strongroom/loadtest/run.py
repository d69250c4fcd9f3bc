"""A load test from its beginning to its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import uvloop

from strongroom.errors import ServerUnavailable
from strongroom.loadtest.connection import Ask, Connection, Failed
from strongroom.loadtest.grpc_connection import GrpcConnection
from strongroom.loadtest.load import closed_loop, open_loop, until_interrupted, warm_up
from strongroom.loadtest.protocols import Arrays, ModelApi
from strongroom.loadtest.rest import RestConnection
from strongroom.loadtest.results import Outcome, Recorder
from strongroom.loadtest.target import Security, Target
from strongroom.serving.tensors import TensorSpec

__all__ = ["Plan", "run"]


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        arrays: from the inputs of the model to what is sent, in turn.
        loops: queries of each connection, 0 for ever; of a closed loop.
        rate: queries a second, of an open loop; None: closed.
        seconds: how long an open loop takes.
        warm_up: queries of each connection that do not count.
        timeout: seconds in which a query is answered.
    """

    target: Target
    api: ModelApi
    arrays: Callable[[Sequence[TensorSpec]], Sequence[Arrays]]
    connections: int = 16
    batch: int = 1
    loops: int = 200
    rate: float | None = None
    seconds: float = 10.0
    warm_up: int = 1
    timeout: float = 30.0
    security: Security = field(default_factory=Security)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


def run(plan: Plan) -> Outcome:
    """Ask the server what the model takes, then load it.

    A signal ends the run, and what was measured until then is returned.

    Raises:
        ServerUnavailable: the server cannot be reached.
        NotFound: it does not know the model.
        NotAuthorised: it does not let this client in.
        UsageError: the inputs are not what the model takes.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(plan))


async def _run(plan: Plan) -> Outcome:
    connections = _connections(plan)
    try:
        requests: list[Ask] = []

        async def prepare() -> None:
            try:
                specs = await plan.api.inputs(connections[0])
            except Failed as failed:
                error = failed.error()
                if isinstance(error, ServerUnavailable):
                    error.hint = await plan.target.other() or error.hint
                raise error from None
            requests.extend(map(plan.api.infer, plan.arrays(specs)))
            await warm_up(connections, requests, plan.warm_up)

        interrupted = await until_interrupted([prepare()])
        if interrupted is not None:
            return Outcome(
                Recorder(), plan.connections, plan.batch, 0.0, 0.0, 0.0, interrupted=interrupted
            )
        if plan.rate is None:
            return await closed_loop(connections, requests, plan.loops, plan.batch)
        return await open_loop(connections, requests, plan.rate, plan.seconds, plan.batch, plan.timeout)
    finally:
        await asyncio.gather(*(one.close() for one in connections))


def _connections(plan: Plan) -> list[Connection]:
    # For gRPC too, which says of files that it cannot use no more than that it does not connect.
    context = plan.security.context() if plan.target.secure else None
    if plan.target.grpc:
        return [
            GrpcConnection(plan.target, plan.security, plan.headers, plan.timeout)
            for _ in range(plan.connections)
        ]
    return [
        RestConnection(plan.target, context, plan.headers, plan.timeout)
        for _ in range(plan.connections)
    ]
