"""What models are and how they are, in the messages of TensorFlow Serving."""

from __future__ import annotations

from typing import Any

from strongroom.serving.engine import Engine
from strongroom.serving.messages import message
from strongroom.serving.states import Description
from strongroom.serving.tfs.inference import METHODS
from strongroom.serving.tfs.tensor_proto import fill, fill_info

__all__ = ["signature_map", "status_response"]


def signature_map(description: Description) -> Any:
    """The signatures, as a ``SignatureDefMap``."""
    found = message("tensorflow.serving.SignatureDefMap")()
    for name, signature in description.signatures.items():
        definition = found.signature_def[name]
        definition.method_name = METHODS[signature.method]
        for specs, infos in (
            (signature.inputs, definition.inputs),
            (signature.outputs, definition.outputs),
        ):
            for spec in specs.values():
                fill_info(infos[spec.name], spec)
        for input, value in signature.defaults.items():
            fill(definition.defaults[input], value)
    return found


def status_response(engine: Engine, model: str, version: int | None, label: str | None) -> Any:
    """States of a model's versions, as a ``GetModelStatusResponse``.

    Raises:
        RequestError: NOT_FOUND, as :meth:`.Engine.status`; UNAVAILABLE: there is no version, and why.
    """
    versions = engine.status(model, version, label)
    if not versions:
        engine.signatures(model)
    found = message("tensorflow.serving.GetModelStatusResponse")()
    for one in versions:
        status = found.model_version_status.add(version=one.version, state=int(one.state))
        status.status.error_code = one.code
        status.status.error_message = one.message
    return found
