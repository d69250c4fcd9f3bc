"""The program of a serving runtime: KServe's server, with one sealed model."""

from __future__ import annotations

import argparse
import os
import sys
from logging import NullHandler
from typing import Final

from strongroom.errors import StrongroomError, UsageError
from strongroom.serving.status import Code, RequestError

_EXIT_CODES: Final = {
    Code.INVALID_ARGUMENT: 3,
    Code.PERMISSION_DENIED: 4,
    Code.DATA_LOSS: 5,
    Code.UNAVAILABLE: 7,
    Code.NOT_FOUND: 2,
    Code.FAILED_PRECONDITION: 2,
}
"""Those of the command line, for what the status of a version says."""


def _parser() -> argparse.ArgumentParser:
    from kserve import model_server

    from strongroom.integrations.kserve.model import MODEL_DIR

    parser = argparse.ArgumentParser(
        prog="python -m strongroom.integrations.kserve",
        description="Serve a sealed model by KServe's server.",
        parents=[model_server.parser],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model_dir", default=MODEL_DIR, help="Where the sealed model is; may be a URL."
    )
    parser.add_argument(
        "--key",
        help="Source of its key: a path, env:NAME, unix:///run/strongroom/keys.sock, the URL of a key server. "
        "Without it, what the environment or the model itself says.",
    )
    parser.add_argument(
        "--config",
        help="A models.yaml with one model: what there is to say beside its name, place and key.",
    )
    parser.add_argument(
        "--patience",
        type=float,
        help="Seconds to wait for a key server that is away; without it for ever.",
    )
    parser.add_argument(
        "--poll",
        type=float,
        default=0.0,
        help="Seconds between two looks for new versions; 0 looks once.",
    )
    parser.add_argument(
        "--max_request_bytes",
        type=int,
        default=64 << 20,
        help="Of a body over HTTP; those of gRPC have an option of their own.",
    )
    return parser


def main() -> int:
    """Serve until a signal says stop; the exit code."""
    args = _parser().parse_args()
    try:
        _serve(args)
    except StrongroomError as error:
        hint = f" {error.hint}" if error.hint else ""
        print(f"strongroom: {error.message}{hint}", file=sys.stderr)
        return (
            _EXIT_CODES.get(error.code, error.exit_code)
            if isinstance(error, RequestError)
            else error.exit_code
        )
    return 0


def _serve(args: argparse.Namespace) -> None:
    from kserve import ModelServer, logging, model_server

    from strongroom.crypto.secret import keep_out_of_core_dumps
    from strongroom.integrations.kserve.guard import BodyLimit, NoControl
    from strongroom.integrations.kserve.model import SealedKServeModel
    from strongroom.web.logs import configure_logging

    if args.workers != 1:
        raise UsageError(
            "A sealed model is open in one process: --workers is 1.",
            hint="More replicas share the load.",
        )
    keep_out_of_core_dumps()
    configure_logging()
    if args.log_config_file is None:
        # KServe's handlers write tracebacks of failed requests; those here say where, and no words of them.
        logging.logger.addHandler(NullHandler())
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    model = SealedKServeModel(
        args.model_name,
        args.model_dir,
        key=args.key,
        patience=args.patience,
        poll=args.poll,
        **_settings(args.config),
    )
    model.load()
    model_server.app.add_middleware(BodyLimit, limit=args.max_request_bytes)
    server = ModelServer()
    server.model_repository_extension = NoControl(server.registered_models)
    server.start([model])


def _settings(path: str | None) -> dict[str, object]:
    if path is None:
        return {}
    from dataclasses import fields

    from strongroom.serving.config_files import read_models

    models = read_models(path)
    if len(models) != 1:
        raise UsageError(f"{path} has {len(models)} models, and an InferenceService is one.")
    named = {"name", "path", "key"}
    return {
        one.name: getattr(models[0], one.name) for one in fields(models[0]) if one.name not in named
    }


if __name__ == "__main__":
    sys.exit(main())
