"""``strongroom serve``."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from strongroom.cli.verb import Quiet, flag, verb
from strongroom.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from strongroom.serving.config import Batching, ClientRule, ModelConfig
    from strongroom.serving.repository import Load
    from strongroom.serving.settings import Tls

__all__ = ["register"]

_EXAMPLES: Final = """
strongroom serve resnet50=./resnet50.sealed -k key.txt
strongroom serve resnet50=/models/resnet50 --tls-cert server.pem --tls-key server.key.sealed --client-ca ca.pem
strongroom serve --config models.yaml --host 0.0.0.0 --rest-port 8501 --grpc-port 8500
strongroom serve --model-config-file models.config --ssl-config-file ssl.cfg --batch 32:2
"""
# A package of another can only be looked for where that is.
_PACKAGES: Final = (
    *("google", "google.protobuf", "grpc", "grpc_health", "grpc_reflection", "httptools", "ml_dtypes"),
    *("numpy", "orjson", "prometheus_client", "structlog", "uvicorn", "uvloop", "yaml"),
)
_TFS_OPTIONS: Final = {"port": "grpc-port", "rest-api-port": "rest-port"}
"""Names of tensorflow_model_server → ours; underlines are dashes in all."""

_BATCH: Final = re.compile(r"(\d{1,6})(?::(\d{1,5}(?:\.\d{1,6})?))?")


def _given(*options: str, metavar: str, help: str) -> Any:
    return typer.Option(*options, metavar=metavar, show_default=False, help=help)


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=PATH",
            show_default=False,
            help="Models: by which name, and where; a sealed model, or a directory of versions.",
        ),
    ] = None,
    config: Annotated[
        Path | None, _given("--config", "-c", metavar="FILE", help="Further models, in YAML.")
    ] = None,
    model_config_file: Annotated[
        Path | None,
        _given(
            "--model-config-file",
            metavar="FILE",
            help="Further models, in TensorFlow Serving's format.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="Where to listen; 0.0.0.0 is everywhere, :: with IPv6 too."
        ),
    ] = "127.0.0.1",
    rest_port: Annotated[
        int, typer.Option("--rest-port", metavar="PORT", help="Of HTTP; 0 takes any that is free.")
    ] = 8501,
    grpc_port: Annotated[
        int, typer.Option("--grpc-port", metavar="PORT", help="Of gRPC; 0 takes any that is free.")
    ] = 8500,
    management_port: Annotated[
        int | None,
        _given(
            "--management-port",
            metavar="PORT",
            help="Of HTTP without TLS or names of clients, for /healthz, /readyz and /metrics alone; "
            "0 takes any that is free.",
        ),
    ] = None,
    management_host: Annotated[
        str | None,
        _given("--management-host", metavar="HOST", help="Where that one is; otherwise at --host."),
    ] = None,
    key: Annotated[
        str | None,
        _given(
            "-k",
            "--key",
            metavar="KEY",
            help="Key file or key URI, of models that have none of their own and of sealed TLS files.",
        ),
    ] = None,
    tls_cert: Annotated[
        str | None,
        _given("--tls-cert", metavar="FILE", help="Certificate for both ports, with those above it."),
    ] = None,
    tls_key: Annotated[
        str | None, _given("--tls-key", metavar="FILE", help="Its key; may be a sealed file.")
    ] = None,
    client_ca: Annotated[
        str | None,
        _given(
            "--client-ca",
            metavar="FILE",
            help="Who signs for clients; nobody connects without a certificate of theirs.",
        ),
    ] = None,
    ssl_config_file: Annotated[
        str | None,
        _given(
            "--ssl-config-file",
            metavar="FILE",
            help="TensorFlow Serving's ssl.cfg, in place of the three; holds for both ports. May be a "
            "sealed file.",
        ),
    ] = None,
    admin: Annotated[
        list[str] | None,
        _given(
            "--admin",
            metavar="WHO",
            help="Who may load and unload models and reconfigure: subject:CN=…, name:DNS-NAME, "
            "token-sha256:HEX, or anybody. Can be repeated.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        _given(
            "--batch",
            metavar="N[:MS]",
            help="Put requests together, N examples at most; the first waits MS milliseconds.",
        ),
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option("--max-request-bytes", metavar="BYTES", help="Of a body or message.")
    ] = 64 << 20,
    poll: Annotated[
        float,
        typer.Option(
            "--poll",
            metavar="SECONDS",
            help="Between two looks for new versions; 0 looks at the start alone.",
        ),
    ] = 1.0,
    drain_seconds: Annotated[
        float,
        typer.Option(
            "--drain-seconds",
            metavar="SECONDS",
            help="After SIGTERM, until connections end: for load balancers to turn away.",
        ),
    ] = 5.0,
    otlp_endpoint: Annotated[
        str | None,
        _given(
            "--otlp-endpoint",
            metavar="URL",
            help="Send traces to this OpenTelemetry collector, such as http://localhost:4318; without it "
            "OTEL_EXPORTER_OTLP_ENDPOINT says.",
        ),
    ] = None,
    no_access_log: Annotated[bool, flag("--no-access-log", help="No line for each request.")] = False,
    quiet: Quiet = False,
) -> None:
    """Serve sealed models over the protocols that clients speak.

    The API of TensorFlow Serving and the Open Inference Protocol (v2), each over REST and gRPC. Keys come
    from --key, the environment or the key server of each model; plaintext is in memory alone. SIGTERM
    drains: readiness ends first, then connections, and every request that has come is answered.
    Logs are JSON on standard error. /healthz and /readyz are on the port of REST, /metrics too, unless
    there is a port for management or a model that is not for everybody. Models with allow_native_code
    in their options run code that whoever sealed them wrote.
    """
    for one in _PACKAGES:
        if find_spec(one) is None:
            raise MissingExtra("A model server", "serve")
    from strongroom.serving.config_files import model_of_argument, read_model_config_file, read_models
    from strongroom.serving.run import run
    from strongroom.serving.settings import Listen, RequestLimits, Settings

    found = [model_of_argument(one) for one in models or ()]
    if config is not None:
        found += read_models(config)
    if model_config_file is not None:
        found += read_model_config_file(model_config_file)
    settings = Settings(
        models=_distinct(found),
        listen=Listen(
            host, rest_port, grpc_port, management_port, management_host, drain=drain_seconds
        ),
        limits=RequestLimits(bytes=max_request_bytes),
        tls=_tls(tls_cert, tls_key, client_ca, ssl_config_file, key),
        admins=_admins(admin or []),
        poll=poll,
        access_log=not (no_access_log or quiet),
        otlp_endpoint=otlp_endpoint,
    )
    run(settings, _load(key, _batching(batch)))


def _distinct(models: list[ModelConfig]) -> list[ModelConfig]:
    if not models:
        raise UsageError(
            "There is no model to serve.", hint="Give NAME=PATH, --config or --model-config-file."
        )
    names = [one.name for one in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"There are two models {name}.")
    return models


def _tls(
    certificate: str | None,
    key: str | None,
    client_ca: str | None,
    config: str | None,
    source: str | None,
) -> Tls | None:
    if not (certificate or key or client_ca or config):
        return None
    from strongroom.serving.settings import Tls

    return Tls(certificate, key, client_ca, config, source)


def _admins(rules: list[str]) -> tuple[ClientRule, ...] | None:
    """None: anybody."""
    from strongroom.serving.config import ClientRule

    if rules == ["anybody"]:
        return None
    found = []
    for one in rules:
        kind, _, value = one.partition(":")
        if kind == "subject" and value:
            found.append(ClientRule(subject=value))
        elif kind == "name" and value:
            found.append(ClientRule(name=value))
        elif kind == "token-sha256" and value:
            found.append(ClientRule(token_sha256=value))
        else:
            raise UsageError(
                "--admin is subject:CN=…, name:DNS-NAME, token-sha256:HEX, or anybody alone."
            )
    return tuple(found)


def _batching(text: str | None) -> Batching | None:
    from strongroom.serving.config import Batching

    if text is None:
        return None
    match = _BATCH.fullmatch(text)
    if match is None:
        raise UsageError("--batch is N or N:MS, such as 32 or 32:2.")
    return Batching(int(match[1]), float(match[2] or 0) / 1000)


def _load(key: str | None, batching: Batching | None) -> Load:
    from strongroom.serving.loading import load_servable

    def load(config: ModelConfig, version: int, location: str) -> Any:
        # Here, since models that a client's configuration brings have neither.
        config = replace(config, key=config.key or key, batching=config.batching or batching)
        return load_servable(config, version, location)

    return load


def _spelling(option: str) -> str:
    name = option.replace("_", "-")
    return _TFS_OPTIONS.get(name, name)


def register(app: typer.Typer) -> None:
    """Add the verb."""
    verb(app, "serve", serve, _EXAMPLES, _spelling)
