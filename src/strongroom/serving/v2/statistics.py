"""The numbers of models in the shape that Triton gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strongroom.serving.engine import Engine
from strongroom.serving.response_cache import CacheNumbers
from strongroom.serving.servable import Statistics
from strongroom.serving.status import Code, RequestError

__all__ = ["model_statistics"]


def model_statistics(
    engine: Engine,
    model: str | None = None,
    version: int | None = None,
    sees: Callable[[str], bool] = lambda model: True,
) -> list[dict[str, Any]]:
    """``ModelStatistics`` of each available version of a model, of one, or of all models.

    Args:
        sees: whether the client may hear of a model; for those that it has not named.

    Raises:
        RequestError: NOT_FOUND, UNAVAILABLE: of the model that was named.
    """
    if model is not None:
        return [
            {"name": model, "version": str(number), **_numbers(numbers)}
            for number, numbers in engine.statistics(model, version)
        ]
    found: list[dict[str, Any]] = []
    for one in filter(sees, engine.names()):
        try:
            found += model_statistics(engine, one)
        except RequestError as error:  # it has just gone
            if error.code not in (Code.NOT_FOUND, Code.UNAVAILABLE):
                raise
    return found


def _numbers(found: Statistics) -> dict[str, Any]:
    cache = found.cache or CacheNumbers()
    # Inputs and outputs are handed over as they are.
    return {
        "last_inference": round(found.last * 1000),
        "inference_count": found.examples,
        "execution_count": found.batches.number,
        "inference_stats": {
            "success": _duration(found.requests, found.request_seconds),
            "fail": _duration(found.failed, found.failed_seconds),
            "queue": _duration(found.queued.number, found.queued.total),
            "compute_input": _duration(found.requests, 0.0),
            "compute_infer": _duration(found.running.number, found.running.total),
            "compute_output": _duration(found.requests, 0.0),
            "cache_hit": _duration(cache.hits, cache.hit_seconds),
            "cache_miss": _duration(cache.misses, cache.miss_seconds),
        },
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}
