"""``strongroom loadtest``: how fast a model server answers."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from strongroom.cli.chart import check_chart_name
from strongroom.cli.terminal import plain, print_json
from strongroom.cli.verb import Json, flag, parse_pairs, verb
from strongroom.errors import (
    AlreadyExists,
    InvalidKey,
    MissingExtra,
    StrongroomError,
    Unavailable,
    UsageError,
    os_errors,
)

if TYPE_CHECKING:
    from strongroom.loadtest.protocols import Arrays
    from strongroom.loadtest.results import Outcome
    from strongroom.serving.tensors import TensorSpec

__all__ = ["register"]

_EXAMPLES = """
strongroom loadtest localhost:8500 --model resnet50 --api tfs -img cat.jpg -batch 8 -cnum 16 -loop 200
strongroom loadtest https://localhost:8501 --model resnet50 -ca ca.pem -crt loader.pem -key loader.key
strongroom loadtest grpc://localhost:8500 --model resnet50 --rate 500 --seconds 60 --plot latency.png
"""
_MAX_LINES: Final = 10_000
_MAX_RATE: Final = 1e6


class Api(StrEnum):
    """Which protocol."""

    v2 = "v2"
    tfs = "tfs"


def _long(name: str, metavar: str, help: str, **more: Any) -> Any:
    """An option as the clients of TensorFlow Serving write it, with one dash, and with two."""
    return typer.Option(f"-{name}", f"--{name}", metavar=metavar, help=help, **more)


def loadtest(
    url: Annotated[
        str | None,
        typer.Argument(
            metavar="URL",
            show_default=False,
            help="The server: http://HOST:PORT, https://…, grpc://… or grpcs://…; HOST:PORT is gRPC.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", metavar="M", show_default=False, help="Name of the model."),
    ] = "",
    url_option: Annotated[
        str | None,
        typer.Option("-url", "--url", metavar="URL", show_default=False, help="The same as URL."),
    ] = None,
    api: Annotated[
        Api,
        typer.Option(
            "--api",
            metavar="API",
            help="v2: the Open Inference Protocol. tfs: the API of TensorFlow Serving.",
        ),
    ] = Api.v2,
    version: Annotated[
        int | None,
        typer.Option(
            "--version", metavar="V", min=0, show_default="the server's choice", help="Of the model."
        ),
    ] = None,
    signature: Annotated[
        str, typer.Option("--signature", metavar="S", help="Of the model; for tfs.")
    ] = "serving_default",
    img: Annotated[
        str | None,
        _long("img", "FILE", "Send this image, scaled to what the model takes.", show_default=False),
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FILE",
            show_default=False,
            help="Send these arrays: .npy, or by name .npz or .json.",
        ),
    ] = None,
    random: Annotated[
        bool, flag("--random", help="Send random numbers; without a file they are.")
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="INPUT=D,D,…",
            show_default=False,
            help="Shape of a random input that the model leaves open. Can be repeated.",
        ),
    ] = None,
    batch: Annotated[int, _long("batch", "N", "Examples in a query.", min=1)] = 1,
    cnum: Annotated[int, _long("cnum", "N", "Connections.", min=1, max=10_000)] = 16,
    loop: Annotated[
        int, _long("loop", "N", "Queries of each connection; 0: until interrupted.", min=0)
    ] = 200,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="R",
            show_default=False,
            help="Send R queries a second, answered or not. Latency counts from when each was due.",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0.1, help="With --rate: for how long.")
    ] = 10.0,
    warm_up: Annotated[
        int,
        typer.Option(
            "--warm-up", metavar="N", min=0, help="Queries of each connection that do not count."
        ),
    ] = 1,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="S", min=0.01, help="Seconds in which a query is answered."),
    ] = 30.0,
    ca: Annotated[
        str | None,
        _long("ca", "FILE", "Believe servers of this CA, PEM.", show_default="the system's"),
    ] = None,
    crt: Annotated[
        str | None,
        _long(
            "crt",
            "FILE",
            "Certificate of this client, PEM; without -key that of the CA.",
            show_default=False,
        ),
    ] = None,
    key: Annotated[str | None, _long("key", "FILE", "Its key, PEM.", show_default=False)] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            "--token-file", metavar="FILE", show_default=False, help="Send the bearer token in it."
        ),
    ] = None,
    no_binary: Annotated[
        bool, flag("--no-binary", help="Send JSON in v2 over REST, and no binary tensors.")
    ] = False,
    plot: Annotated[
        str | None,
        typer.Option(
            "--plot", metavar="FILE", show_default=False, help="Draw a chart: .png, .svg or .pdf."
        ),
    ] = None,
    force: Annotated[bool, flag("--force", help="Replace the chart.")] = False,
    json: Json = False,
    quiet: Annotated[bool, flag("-q", "--quiet", help="Print the summary only.")] = False,
) -> None:
    """Measure how fast a model server answers.

    Each connection sends a query when the one before is answered, or, with --rate, queries leave at fixed
    moments. A line for each query, then a summary: tps counts examples a second. Lines are printed when
    all is done, for printing would slow what is measured.

    Ctrl-C ends the run with the summary so far. The exit code is 0 if every query was answered, 7 if the
    server cannot be reached or some queries failed.
    """
    where = _one_of(url, url_option)
    if not model:
        raise UsageError("Which model?", hint="--model M, as the server calls it.")
    if sum((img is not None, input is not None, random)) > 1:
        raise UsageError("-img, --input and --random are alternatives.")
    if rate is not None and not 0 < rate <= _MAX_RATE:
        raise UsageError("--rate is more than 0, and 1000000 at most.")
    if plot is not None:
        check_chart_name(plot)
        if os.path.lexists(plot) and not force:
            raise AlreadyExists(f"{plot} exists already.", hint="Give --force to replace it.")
    shapes = {name: _sizes(name, text) for name, text in parse_pairs(shape, "--shape").items()}
    try:
        from strongroom.loadtest import inputs, run
        from strongroom.loadtest.protocols import protocol
        from strongroom.loadtest.target import Security, parse_target
    except ImportError:
        raise MissingExtra("A load test", "loadtest") from None

    def arrays(specs: Sequence[TensorSpec]) -> Sequence[Arrays]:
        if img is not None:
            return [inputs.from_image(img, specs, batch)]
        if input is not None:
            return [inputs.from_file(input, specs, batch)]
        return inputs.random_inputs(specs, batch, shapes, seed=0)

    target = parse_target(where, secure=any((ca, crt, key)))
    plan = run.Plan(
        target=target,
        api=protocol(
            api.value,
            grpc=target.grpc,
            model=model,
            version=version,
            signature=signature,
            binary=not no_binary,
        ),
        arrays=arrays,
        connections=cnum,
        batch=batch,
        loops=loop,
        rate=rate,
        seconds=seconds,
        warm_up=warm_up,
        timeout=timeout,
        security=Security.read(ca, crt, key),
        headers={} if token_file is None else {"authorization": f"Bearer {_token(token_file)}"},
    )
    outcome = run.run(plan)
    if json:
        print_json(_as_json(outcome, url=where, api=api.value, model=model, rate=rate))
    else:
        if not quiet:
            _print_queries(outcome, secure=target.secure, numbered=loop > 0 or rate is not None)
        _print_summary(outcome, rate)
    if plot is not None and outcome.recorder.answered:
        from strongroom.cli.loadtest_chart import draw_latencies

        title = f"{plain(model)}, {api.value} at {plain(where)}: {_summary(outcome)}"
        draw_latencies(plot, title, outcome, force=force)
    if outcome.interrupted is not None:
        raise typer.Exit(128 + outcome.interrupted)
    if (failure := _failure(outcome)) is not None:
        raise failure


def _one_of(url: str | None, option: str | None) -> str:
    if (url is None) == (option is None):
        raise UsageError(
            "Give the URL of the server, once.", hint="strongroom loadtest localhost:8500 --model M"
        )
    return url or option or ""


def _sizes(name: str, text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(one.isascii() and one.isdigit() and len(one) < 10 for one in sizes):
        raise UsageError(f"--shape {name}={text}: not of the form INPUT=1,224,224,3.")
    return tuple(map(int, sizes))


def _token(path: str) -> str:
    with os_errors(path):
        token = Path(path).read_bytes().strip()
    if not token or not token.isascii() or not token.decode().isprintable():
        raise InvalidKey(f"There is no token in {path}.")
    return token.decode()


def _print_queries(outcome: Outcome, *, secure: bool, numbered: bool) -> None:
    channel = "secure" if secure else "insecure"
    queries = outcome.recorder.queries()
    lines = []
    for task, index, took in itertools.islice(queries, _MAX_LINES):
        number = f"loop_idx {index}, " if numbered else ""
        lines.append(
            f"query: {channel} channel, task {task}, batch {outcome.batch}, {number}"
            f"latency(ms) {took * 1e3:.1f}, tps: {outcome.batch / took:.1f}\n"
        )
    sys.stdout.writelines(lines)
    if (left := outcome.recorder.answered - len(lines)) > 0:
        print(f"… and {left} more")


def _summary(outcome: Outcome) -> str:
    mean = outcome.statistics().get("mean", 0.0)
    return (
        f"cnum {outcome.connections}, batch {outcome.batch}, e2e time(s) {outcome.seconds:.3f},"
        f" average latency(ms) {mean:.2f}, tps: {outcome.tps():.1f}"
    )


def _print_summary(outcome: Outcome, rate: float | None) -> None:
    print(f"summary: {_summary(outcome)}")
    if found := outcome.statistics():
        print("latency(ms): " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()))
    codes = ", ".join(f"{code}: {count}" for code, count in outcome.recorder.failures.most_common())
    print(
        f"queries: {outcome.recorder.answered} answered, {outcome.failed} failed"
        + (f" ({codes})" if codes else "")
    )
    if rate is not None:
        print(
            f"open loop: {rate:g} queries/s, sent late(ms) p99 {outcome.delay():.2f}, {outcome.unsent} not sent"
        )
    share = 100 * outcome.cpu / outcome.seconds if outcome.seconds else 0
    print(f"client: {share:.0f} % of one core")


def _as_json(outcome: Outcome, *, rate: float | None, **about: str) -> dict[str, Any]:
    loop = {"rate": rate, "late_ms_p99": outcome.delay(), "unsent": outcome.unsent}
    return {
        **about,
        "connections": outcome.connections,
        "batch": outcome.batch,
        "seconds": outcome.seconds,
        "answered": outcome.recorder.answered,
        "failed": dict(outcome.recorder.failures),
        "queries_per_second": outcome.recorder.answered / outcome.seconds if outcome.seconds else 0.0,
        "tps": outcome.tps(),
        "latency_ms": outcome.statistics(),
        "open_loop": None if rate is None else loop,
        "client_cpu_seconds": outcome.cpu,
        "interrupted": outcome.interrupted is not None,
    }


def _failure(outcome: Outcome) -> StrongroomError | None:
    failures = outcome.recorder.failures
    if not outcome.failed and not outcome.unsent:
        return None
    if not outcome.recorder.answered and failures:
        return outcome.recorder.first[failures.most_common(1)[0][0]].error()
    total = outcome.recorder.answered + outcome.failed + outcome.unsent
    lost = outcome.failed + outcome.unsent
    return Unavailable(f"{lost} of {total} queries were not answered.")


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "loadtest", loadtest, _EXAMPLES)
