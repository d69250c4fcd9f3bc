"""LightGBM."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from strongroom.model.reader import SealedModel
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import tabular

__all__ = ["load"]

_OPTIONS: Final = (
    *("start_iteration", "num_iteration"),
    *("pred_early_stop", "pred_early_stop_freq", "pred_early_stop_margin"),
)
_OUTPUTS: Final[dict[str, dict[str, Any]]] = {
    "predict": {},
    **{name: {name: True} for name in ("raw_score", "pred_leaf", "pred_contrib")},
}


def load(model: SealedModel, options: BackendOptions) -> tabular.TableModel:
    """A booster; ``options.extra`` are arguments of its ``predict``.

    Raises:
        UsageError: the configuration is none for this model.
        LightGBMError: as LightGBM raises it about the model or the arguments.
    """
    from strongroom.loaders import lightgbm as loader

    arguments = tabular.options_of(options, _OPTIONS)
    if options.threads:
        # Of all that LightGBM computes in the process from then on; each call says it again.
        arguments["num_threads"] = options.threads
    booster = loader.booster(model, path=options.file)
    table = tabular.table_of(options, booster.num_feature(), _names(booster), "float64")
    functions = {name: partial(booster.predict, **arguments, **said) for name, said in _OUTPUTS.items()}
    return tabular.booster_model("lightgbm", table, functions, options)


def _names(booster: Any) -> list[str] | None:
    names: list[str] = booster.feature_name()
    # What LightGBM calls features that have no names.
    return None if names == [f"Column_{number}" for number in range(len(names))] else names
