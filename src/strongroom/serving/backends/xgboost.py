"""XGBoost."""

from __future__ import annotations

import json
import threading
from typing import Any, Final

from strongroom.errors import UsageError
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import tabular

__all__ = ["load"]

_OPTIONS: Final = ("params", "missing", "iteration_range")
_LINEAR: Final = "gblinear"


class _Booster:
    """What a booster computes, by ``Booster.inplace_predict``, which may be called by several threads."""

    def __init__(self, booster: Any, iterations: tuple[int, int], missing: float) -> None:
        self._booster = booster
        self._iterations = iterations
        self._missing = missing
        # Linear boosters have no inplace_predict, and their predict is for one thread.
        self._lock = threading.Lock() if _kind(booster) == _LINEAR else None

    def predict(self, features: Any) -> Any:
        return self._run(features, margin=False)

    def margin(self, features: Any) -> Any:
        return self._run(features, margin=True)

    def _run(self, features: Any, margin: bool) -> Any:
        if self._lock is None:
            return self._booster.inplace_predict(
                features,
                iteration_range=self._iterations,
                predict_type="margin" if margin else "value",
                missing=self._missing,
                validate_features=False,
            )
        import xgboost

        matrix = xgboost.DMatrix(features, missing=self._missing)
        with self._lock:
            return self._booster.predict(matrix, output_margin=margin, validate_features=False)


def load(model: SealedModel, options: BackendOptions) -> tabular.TableModel:
    """A booster; ``options.extra`` are ``params`` of it, ``missing`` and ``iteration_range`` of its ``predict``.

    Raises:
        UsageError: the configuration is none for this model.
        XGBoostError: as XGBoost raises it about the model or ``params``.
    """
    from strongroom.loaders import xgboost as loader

    extra = tabular.options_of(options, _OPTIONS)
    params = extra.get("params", {})
    missing = extra.get("missing", float("nan"))
    if not isinstance(params, dict) or type(missing) not in (int, float):
        raise UsageError("options.params has members, and options.missing is a number.")
    if options.threads:
        params = {**params, "nthread": options.threads}
    booster = loader.booster(model, params, path=options.file)
    table = tabular.table_of(options, booster.num_features(), booster.feature_names, "float32")
    made = _Booster(booster, _iterations(booster, extra.get("iteration_range")), float(missing))
    functions = {"predict": made.predict, "margin": made.margin}
    return tabular.booster_model("xgboost", table, functions, options)


def _iterations(booster: Any, said: Any) -> tuple[int, int]:
    """All, as ``Booster.predict``; of the file of an estimator those that the estimator would use."""
    if said is not None:
        if not (
            isinstance(said, list | tuple) and len(said) == 2 and all(type(one) is int for one in said)
        ):
            raise UsageError(
                "options.iteration_range is [FIRST, LAST], of which the last is not used any more."
            )
        return said[0], said[1]
    best = booster.attr("best_iteration")
    if best is not None and booster.attr("scikit_learn") is not None:
        return 0, int(best) + 1
    return 0, 0


def _kind(booster: Any) -> str:
    name: str = json.loads(booster.save_config())["learner"]["gradient_booster"]["name"]
    return name
