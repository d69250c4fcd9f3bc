"""The numbers of models in the shape that Triton gives them."""

from __future__ import annotations

from typing import Any

from strongroom.serving.engine import Engine
from strongroom.serving.servable import Statistics
from strongroom.serving.status import Code, RequestError

__all__ = ["model_statistics"]


def model_statistics(
    engine: Engine, model: str | None = None, version: int | None = None
) -> list[dict[str, Any]]:
    """``ModelStatistics`` of each available version of a model, of one, or of all models.

    Raises:
        RequestError: NOT_FOUND, UNAVAILABLE: of the model that was named.
    """
    if model is not None:
        return [
            {"name": model, "version": str(number), **_numbers(numbers)}
            for number, numbers in engine.statistics(model, version)
        ]
    found: list[dict[str, Any]] = []
    for one in engine.names():
        try:
            found += model_statistics(engine, one)
        except RequestError as error:  # it has just gone
            if error.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
                raise
    return found


def _numbers(found: Statistics) -> dict[str, Any]:
    # A request waits, runs and is answered: what the model did not take was the queue's. Inputs and
    # outputs are handed over as they are.
    waited = max(0.0, found.request_seconds - found.run_seconds)
    return {
        "last_inference": round(found.last * 1000),
        "inference_count": found.examples,
        "execution_count": found.runs,
        "inference_stats": {
            "success": _duration(found.requests, found.request_seconds),
            "fail": _duration(found.failed, found.failed_seconds),
            "queue": _duration(found.requests, waited),
            "compute_input": _duration(found.requests, 0.0),
            "compute_infer": _duration(found.runs, found.run_seconds),
            "compute_output": _duration(found.requests, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
