"""scikit-learn: estimators and pipelines, from skops files or, where the configuration allows it, joblib's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from strongroom.errors import UsageError
from strongroom.loaders.source import archive_members, pick
from strongroom.model.reader import SealedModel
from strongroom.serving.backend import Arrays, BackendOptions
from strongroom.serving.backends import tabular
from strongroom.serving.tensors import BYTES, TensorSpec, dtype_name

__all__ = ["load"]

_SUFFIXES: Final = (".skops", ".joblib", ".pkl", ".pickle")
_OPTIONS: Final = ("trusted", "allow_pickle")
_METHODS: Final = (
    *("predict", "predict_proba", "predict_log_proba", "decision_function", "score_samples"),
    "transform",
)
_CLASSES: Final = "classes"
_SCORES: Final = "scores"


def load(model: SealedModel, options: BackendOptions) -> tabular.TableModel:
    """An estimator; ``options.extra`` are ``trusted`` types of skops, or ``allow_pickle`` for joblib.

    Raises:
        UsageError: the configuration is none for this model, or the file needs what it does not allow.
        what scikit-learn raises.
    """
    extra = tabular.options_of(options, _OPTIONS)
    estimator = _estimator(model, options, extra)
    if options.threads:
        _set_jobs(estimator, options.threads)
    functions = {
        name: _in_threads(getattr(estimator, name)) for name in _METHODS if hasattr(estimator, name)
    }
    if not functions:
        raise UsageError(f"A {type(estimator).__name__} has no method that could be served.")
    # One that was fitted on columns with names warns at every run that a matrix has none.
    warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
    names = getattr(estimator, "feature_names_in_", None)
    names = None if names is None else [str(one) for one in names]
    table = tabular.table_of(options, getattr(estimator, "n_features_in_", None), names, "float64")
    features = _features(table, framed=names is not None)
    found: dict[str, TensorSpec] = {}
    for name in tabular.chosen(options, functions, _default(functions)):
        try:
            found[name] = _spec(name, estimator, functions[name], table, features, options)
        except UsageError:
            # Probabilities of several outputs are a list of arrays, and nobody has asked for them.
            if options.outputs or not found:
                raise
    specs = {"serving_default": found}
    signatures = {"serving_default": {name: functions[name] for name in found}}
    for name, outputs in _tasks(estimator, functions, found).items():
        specs[name] = {spec.name: spec for spec, _ in outputs}
        signatures[name] = {spec.name: function for spec, function in outputs}
    return tabular.TableModel("sklearn", table, features, signatures, specs, invalid=(ValueError,))


def _estimator(model: SealedModel, options: BackendOptions, extra: dict[str, Any]) -> Any:
    from strongroom.loaders import sklearn as loader

    name = pick(model, options.file, _SUFFIXES, "scikit-learn")
    if archive_members(model, name) is None:  # as a skops file is one
        if extra.get("allow_pickle") is not True:
            raise UsageError(
                "A joblib or pickle file runs code of its author when it is loaded.",
                hint="Save the model with skops.io.dump; or, if you trust who made the file as your own "
                "code: options: {allow_pickle: true}.",
            )
        return loader.joblib_load(model, allow_pickle=True, path=name)
    from skops import io as skops_io

    trusted = extra.get("trusted")
    if trusted is not None and not (
        isinstance(trusted, list) and all(isinstance(one, str) for one in trusted)
    ):
        raise UsageError("options.trusted is a list of names of types.")
    try:
        return loader.skops_load(model, trusted, path=name)
    except skops_io.exceptions.UntrustedTypesFoundException as error:
        # Names of types are contents of the model: for who runs the server, and not for the status.
        found = str(error).partition("\n")[0].partition(": ")[2]
        raise UsageError(
            "The model uses types that skops does not trust by itself.",
            hint=f"If you trust who made it with them: options: {{trusted: {found.rstrip('.')}}}.",
        ) from None


def _set_jobs(estimator: Any, threads: int) -> None:
    get_params = getattr(estimator, "get_params", None)
    if get_params is not None:
        jobs = [name for name in get_params() if name.rpartition("__")[2] == "n_jobs"]
        estimator.set_params(**dict.fromkeys(jobs, threads))


def _in_threads(method: Callable[[Any], Any]) -> tabular.Function:
    """With joblib's workers, if any, as threads: processes get the model through files of plaintext."""
    import joblib

    def run(features: Any) -> Any:
        with joblib.parallel_config("threading"):
            return method(features)

    return run


def _default(functions: dict[str, tabular.Function]) -> Sequence[str]:
    if "predict" not in functions:
        return ["transform"] if "transform" in functions else list(functions)
    return ["predict", "predict_proba" if "predict_proba" in functions else "decision_function"]


def _features(table: tabular.Table, *, framed: bool) -> Callable[[Arrays], Any]:
    if not table.columns or not framed:
        return table.matrix
    try:
        import pandas
    except ModuleNotFoundError:
        raise UsageError(
            "The model was fitted on columns with names, and takes them from pandas alone.",
            hint="pip install pandas; or configure no columns, if it takes a matrix.",
        ) from None

    def frame(inputs: Arrays) -> Any:
        # pandas would guess another dtype for text than that of the arrays.
        columns = zip(table.specs, table.values(inputs), strict=True)
        return pandas.DataFrame(
            {spec.name: pandas.Series(value, dtype=value.dtype) for spec, value in columns}
        )

    return frame


def _spec(
    name: str,
    estimator: Any,
    function: tabular.Function,
    table: tabular.Table,
    features: Callable[[Arrays], Any],
    options: BackendOptions,
) -> TensorSpec:
    from sklearn.base import is_regressor

    try:
        return tabular.described(name, function, table, features)
    except Exception:
        # Random features may be none that it knows.
        classes = getattr(estimator, "classes_", None)
        if isinstance(classes, np.ndarray) and classes.ndim == 1:
            if name == "predict":
                return TensorSpec(name, dtype_name(classes.dtype), (-1,))
            if name in ("predict_proba", "predict_log_proba"):
                return TensorSpec(name, "float64", (-1, len(classes)))
        if name == "predict" and is_regressor(estimator):
            return TensorSpec(name, "float64", (-1,))
        for said in options.outputs or ():
            if said.name == name:
                return said
        raise UsageError(
            f"The model does not say what {name} gives.",
            hint=f"outputs: [{{name: {name}, dtype: …, shape: [-1, …]}}], with all outputs to serve.",
        ) from None


def _tasks(
    estimator: Any, functions: dict[str, tabular.Function], specs: dict[str, TensorSpec]
) -> dict[str, list[tuple[TensorSpec, tabular.Function]]]:
    """Signatures for ``classify`` and ``regress`` of TensorFlow Serving's API."""
    from sklearn.base import is_regressor

    proba, predict = specs.get("predict_proba"), specs.get("predict")
    classes = getattr(estimator, "classes_", None)
    found: dict[str, list[tuple[TensorSpec, tabular.Function]]] = {}
    if proba is not None and isinstance(classes, np.ndarray) and proba.shape == (-1, len(classes)):
        labels = np.array([str(one) for one in classes], object)
        found["classify"] = [
            (TensorSpec(_CLASSES, BYTES, proba.shape), partial(_repeated, labels)),
            (TensorSpec(_SCORES, proba.dtype, proba.shape), functions["predict_proba"]),
        ]
    if predict is not None and is_regressor(estimator):
        regression = tabular.regress(predict, functions["predict"])
        if regression is not None:
            found["regress"] = [regression]
    return found


def _repeated(labels: Any, features: Any) -> Any:
    return np.broadcast_to(labels, (len(features), len(labels)))
