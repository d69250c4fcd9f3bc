"""Sealed models in KServe: a model for its SDK, and the program of a serving runtime.

::

    from kserve import ModelServer
    from strongroom.integrations import kserve

    model = kserve.SealedKServeModel("resnet50", "/mnt/models", key="unix:///run/strongroom/keys.sock")
    model.load()
    ModelServer().start([model])

``python -m strongroom.integrations.kserve --model_name resnet50 --key …`` does the same.
"""

from __future__ import annotations

from importlib.util import find_spec

from strongroom.errors import MissingExtra

if find_spec("kserve") is None or find_spec("grpc_health") is None:
    raise MissingExtra("A model of KServe", "kserve")

from strongroom.integrations.kserve.model import SealedKServeModel

__all__ = ["SealedKServeModel"]
