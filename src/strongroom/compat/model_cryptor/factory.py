"""The model types, what each of them gives, and the factory."""

from __future__ import annotations

from enum import Enum, unique
from typing import Any, ClassVar, Final

from strongroom.compat.model_cryptor.cryptor import ModelCryptor
from strongroom.errors import UsageError
from strongroom.loaders import registry
from strongroom.model.reader import SealedModel

__all__ = ["CryptorFactory", "ModelType"]

_GPU_POOL: Final = 256  # MiB that Paddle takes at first
_TRT_WORKSPACE: Final = 1 << 30


@unique
class ModelType(Enum):
    """The nine types of model_cryptor; the values are the names of their cryptors."""

    MODEL_TORCH = "TorchModelCryptor"
    MODEL_TORCHSCRIPT = "TorchScriptModelCryptor"
    MODEL_ONNX = "ONNXModelCryptor"
    MODEL_TENSORRT = "TensorRTModelCryptor"
    MODEL_TORCH2TRT = "Torch2TRTModelCryptor"
    MODEL_TENSORFLOW = "TensorFlowModelCryptor"
    MODEL_TF2TRT = "TF2TRTModelCryptor"
    MODEL_PADDLE = "PaddleModelCryptor"
    MODEL_PADDLE2TRT = "Paddle2TRTModelCryptor"


class TorchModelCryptor(ModelCryptor):
    """``torch.save`` files: a state dict, or a whole module.

    ``decrypt(…, weights_only=…)``: None, the default, makes tensors, containers and objects of classes
    of ``torch.nn.Module``; True is torch's own, without such classes; False unpickles anything, and so
    runs whatever code the file names.
    """

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any:
        from strongroom.compat.model_cryptor import modules
        from strongroom.loaders import torch

        if options.get("weights_only") is None:
            options.pop("weights_only", None)
            return modules.load(model, map_location, **options)
        return torch.load(model, map_location, **options)


class TorchScriptModelCryptor(ModelCryptor):
    """TorchScript archives: a ``torch.jit.ScriptModule``."""

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any:
        from strongroom.loaders import torch

        return torch.jit_load(model, map_location, **options)


class _BytesCryptor(ModelCryptor):
    """The file itself, as ``bytes``. ``decrypt(…, path=…)`` says which one of a directory."""

    _instead: ClassVar[str]

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> bytes:
        return self._read(model, **options)

    def _read(self, model: SealedModel, path: str | None = None) -> bytes:
        if path is None and len(model.files) > 1:
            raise UsageError(
                f"{model.name} has {len(model.files)} files, and bytes are of one.",
                hint=f"Say which one with path=…, or load all of it with {self._instead}.",
            )
        return model.read(path)


class ONNXModelCryptor(_BytesCryptor):
    """ONNX files: ``bytes``, for ``onnxruntime.InferenceSession``."""

    _instead = "strongroom.loaders.onnx.session"


class TensorRTModelCryptor(_BytesCryptor):
    """TensorRT plans: ``bytes``, for ``trt.Runtime.deserialize_cuda_engine``."""

    _instead = "strongroom.loaders.tensorrt.load"


class Torch2TRTModelCryptor(ModelCryptor):
    """State dicts of torch2trt: a ``torch2trt.TRTModule``. Needs torch2trt, and a GPU."""

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any:
        from strongroom.loaders import torch2trt

        return torch2trt.load(model, map_location, **options)


class _DetectedCryptor(ModelCryptor):
    """One of several loaders, by the names and first bytes of the files."""

    _frameworks: ClassVar[tuple[str, ...]]
    _what: ClassVar[str]

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any:
        framework = registry.detect(model, options.get("path"))
        if framework not in self._frameworks:
            raise UsageError(
                f"{model.name} is a model for the loader {framework}, and not one of {self._what}.",
                hint="Ask the factory for the cryptor of its type, or use strongroom.load.",
            )
        return registry.load(model, framework=framework, **options)


class TensorFlowModelCryptor(_DetectedCryptor):
    """A SavedModel directory, a ``.keras`` or ``.h5`` file, a frozen graph, a ``.tflite`` file.

    What ``tf.saved_model.load`` gives, a Keras model, a function, an interpreter.
    """

    _frameworks = ("tensorflow", "keras", "tensorflow.graph_def", "tflite")
    _what = "TensorFlow"


class TF2TRTModelCryptor(_DetectedCryptor):
    """A SavedModel that TF-TRT has converted: what ``tf.saved_model.load`` gives.

    TensorFlow must be one built with TensorRT to run it.
    """

    _frameworks = ("tensorflow",)
    _what = "TensorFlow"


class PaddleModelCryptor(_DetectedCryptor):
    """A ``paddle.save`` file: what ``paddle.load`` gives. A directory of ``paddle.jit.save``: its layer."""

    _frameworks = ("paddle", "paddle.jit")
    _what = "Paddle"


class Paddle2TRTModelCryptor(ModelCryptor):
    """A directory of ``paddle.jit.save``: a ``paddle.inference.Predictor`` that uses TensorRT.

    ``decrypt(…, configure=…)`` is called with the ``paddle.inference.Config`` and sets it up instead of
    what is done here: the first GPU, TensorRT for subgraphs of three operators and more.
    """

    def _load(self, model: SealedModel, map_location: Any, options: dict[str, Any]) -> Any:
        from strongroom.loaders import paddle

        return paddle.create_predictor(model, **{"configure": _use_tensorrt, **options})


def _use_tensorrt(config: Any) -> None:
    config.enable_use_gpu(_GPU_POOL, 0)
    config.enable_tensorrt_engine(_TRT_WORKSPACE, 1, 3)


_CRYPTORS: Final[dict[ModelType, ModelCryptor]] = {
    ModelType.MODEL_TORCH: TorchModelCryptor(),
    ModelType.MODEL_TORCHSCRIPT: TorchScriptModelCryptor(),
    ModelType.MODEL_ONNX: ONNXModelCryptor(),
    ModelType.MODEL_TENSORRT: TensorRTModelCryptor(),
    ModelType.MODEL_TORCH2TRT: Torch2TRTModelCryptor(),
    ModelType.MODEL_TENSORFLOW: TensorFlowModelCryptor(),
    ModelType.MODEL_TF2TRT: TF2TRTModelCryptor(),
    ModelType.MODEL_PADDLE: PaddleModelCryptor(),
    ModelType.MODEL_PADDLE2TRT: Paddle2TRTModelCryptor(),
}


class CryptorFactory:
    """Gives the cryptor of a model type; one for all who ask, made beforehand, so that none can race."""

    @classmethod
    def instance(cls, type: ModelType) -> ModelCryptor:
        """The cryptor of ``type``.

        Raises:
            UsageError: it is no :class:`ModelType`.
        """
        if not isinstance(type, ModelType):
            raise UsageError(
                f"A ModelType is needed, not {type!r}.",
                hint="They are: " + ", ".join(f"ModelType.{kind.name}" for kind in ModelType) + ".",
            )
        return _CRYPTORS[type]
