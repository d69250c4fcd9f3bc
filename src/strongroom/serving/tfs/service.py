"""The API over gRPC: PredictionService and ModelService."""

from __future__ import annotations

from typing import Any, Final

from strongroom.serving.call import Answer, Call
from strongroom.serving.config_files import models_of_message
from strongroom.serving.engine import Engine
from strongroom.serving.grpc_calls import Context, service
from strongroom.serving.messages import message
from strongroom.serving.status import Code, RequestError
from strongroom.serving.tfs.examples import examples_of
from strongroom.serving.tfs.inference import METHODS, classifications, prepare, regressions
from strongroom.serving.tfs.metadata import signature_map, status_response
from strongroom.serving.tfs.tensor_proto import fill, to_array

__all__ = ["handlers"]

_PACKAGE: Final = "tensorflow.serving."
_SIGNATURES: Final = "signature_def"
_TRIES: Final = 5
"""Of a request whose tasks met two versions, because one took the other's place meanwhile."""


def handlers(engine: Engine, *, reload: bool = False) -> list[Any]:
    """For ``grpc.Server.add_generic_rpc_handlers``.

    Args:
        engine: that answers.
        reload: clients may change which models there are, by HandleReloadConfigRequest.
    """
    prediction = _Prediction(engine)
    models = _Models(engine, reload)
    return [
        service(
            _PACKAGE + "PredictionService",
            {
                "Predict": prediction.predict,
                "Classify": prediction.classify,
                "Regress": prediction.regress,
                "MultiInference": prediction.multi_inference,
                "GetModelMetadata": prediction.metadata,
            },
        ),
        service(
            _PACKAGE + "ModelService",
            {"GetModelStatus": models.status, "HandleReloadConfigRequest": models.reload},
        ),
    ]


class _Prediction:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._predicted = message(_PACKAGE + "PredictResponse")
        self._classified = message(_PACKAGE + "ClassificationResponse")
        self._regressed = message(_PACKAGE + "RegressionResponse")

    def predict(self, request: Any, context: Context) -> Any:
        call = _call(request, context)
        if request.output_filter:
            call.outputs = list(request.output_filter)
            if len(set(call.outputs)) < len(call.outputs):
                raise _invalid("An output is asked for twice.")
        call.inputs = {name: to_array(name, tensor) for name, tensor in request.inputs.items()}
        answer = self._engine.infer(call)
        response = self._predicted()
        _fill_spec(response.model_spec, answer)
        for name, array in answer.outputs.items():
            fill(response.outputs[name], array)
        return response

    def classify(self, request: Any, context: Context) -> Any:
        response = self._classified()
        answer = self._classify(_call(request, context), request.input, response.result)
        _fill_spec(response.model_spec, answer)
        return response

    def regress(self, request: Any, context: Context) -> Any:
        response = self._regressed()
        answer = self._regress(_call(request, context), request.input, response.result)
        _fill_spec(response.model_spec, answer)
        return response

    def multi_inference(self, request: Any, context: Context) -> Any:
        if not request.tasks:
            raise _invalid("The request has no task.")
        names = {task.model_spec.name for task in request.tasks}
        signatures = {task.model_spec.signature_name for task in request.tasks}
        if len(names) > 1 or len(signatures) < len(request.tasks):
            raise _invalid("The tasks of a request are different signatures of one model.")
        for _ in range(_TRIES):
            response = message(_PACKAGE + "MultiInferenceResponse")()
            for task in request.tasks:
                self._infer(task, request.input, context, response.results.add())
            if len({one.model_spec.version.value for one in response.results}) == 1:
                return response
        raise RequestError(Code.UNAVAILABLE, "The version of the model changes all the time.")

    def _infer(self, task: Any, input: Any, context: Context, result: Any) -> None:
        if task.method_name == METHODS["classify"]:
            answer = self._classify(_call(task, context), input, result.classification_result)
        elif task.method_name == METHODS["regress"]:
            answer = self._regress(_call(task, context), input, result.regression_result)
        else:
            raise RequestError(
                Code.UNIMPLEMENTED, f"There is no method {task.method_name[:80]!r} of a task."
            )
        _fill_spec(result.model_spec, answer)

    def _classify(self, call: Call, input: Any, result: Any) -> Answer:
        examples = examples_of(input)
        answer = self._engine.infer(prepare(self._engine, call, "classify", examples))
        for row in classifications(answer, len(examples)):
            classes = result.classifications.add().classes
            for label, score in row:
                classes.add(label=label, score=score)
        return answer

    def _regress(self, call: Call, input: Any, result: Any) -> Answer:
        examples = examples_of(input)
        answer = self._engine.infer(prepare(self._engine, call, "regress", examples))
        for value in regressions(answer, len(examples)).tolist():
            result.regressions.add(value=value)
        return answer

    def metadata(self, request: Any, context: Context) -> Any:
        name, version, label = _asked(request)
        if not request.metadata_field:
            raise _invalid(f"The request names no metadata_field; there is {_SIGNATURES}.")
        for field in request.metadata_field:
            if field != _SIGNATURES:
                raise _invalid(f"There is no metadata_field {field[:80]!r}; there is {_SIGNATURES}.")
        description = self._engine.describe(name, version, label)
        response = message(_PACKAGE + "GetModelMetadataResponse")()
        response.model_spec.name = description.model
        response.model_spec.version.value = description.version
        response.metadata[_SIGNATURES].Pack(signature_map(description))
        return response


class _Models:
    def __init__(self, engine: Engine, reload: bool) -> None:
        self._engine = engine
        self._reload = reload

    def status(self, request: Any, context: Context) -> Any:
        return status_response(self._engine, *_asked(request))

    def reload(self, request: Any, context: Context) -> Any:
        if not self._reload:
            raise RequestError(
                Code.PERMISSION_DENIED, "This server takes no configuration from its clients."
            )
        known = {name: self._engine.config(name) for name in self._engine.names()}
        configs = models_of_message(request.config, known)
        self._engine.reconfigure(configs)
        # Who asks for a model and is told "done" uses it: as in TensorFlow Serving, new ones are there.
        for one in configs:
            if one.name not in known:
                self._engine.load(one.name)
        response = message(_PACKAGE + "ReloadConfigResponse")()
        response.status.SetInParent()
        return response


def _call(request: Any, context: Context) -> Call:
    name, version, label = _asked(request)
    signature = request.model_spec.signature_name or None
    call = Call(name, {}, version=version, label=label, signature=signature, api="tfs")
    return context.watch(call)


def _asked(request: Any) -> tuple[str, int | None, str | None]:
    spec = request.model_spec
    if not spec.name:
        raise _invalid("The request names no model in its model_spec.")
    choice = spec.WhichOneof("version_choice")
    return (
        spec.name,
        spec.version.value if choice == "version" else None,
        spec.version_label if choice == "version_label" else None,
    )


def _fill_spec(spec: Any, answer: Answer) -> None:
    spec.name = answer.model
    spec.version.value = answer.version
    spec.signature_name = answer.signature


def _invalid(said: str) -> RequestError:
    return RequestError(Code.INVALID_ARGUMENT, said)
