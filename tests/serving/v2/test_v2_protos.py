"""The messages on the wire are those that Triton's client sends and reads."""

import pytest
from tritonclient.grpc import model_config_pb2, service_pb2

from strongroom.serving.messages import message, method_types

SERVICE = "inference.GRPCInferenceService"
OF_SHARED_MEMORY_AND_SETTINGS = {
    *(
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ),
    "TraceSetting",
    "LogSettings",
}


def descriptors(first):
    """All messages that these refer to, by full name."""
    found = {}
    todo = list(first)
    while todo:
        one = todo.pop()
        if one.full_name not in found:
            found[one.full_name] = one
            todo += [field.message_type for field in one.fields if field.message_type]
            todo += one.nested_types
    return found


def fields(descriptor):
    return {
        one.number: (
            one.name,
            one.type,
            one.is_repeated,
            one.message_type and one.message_type.full_name,
            one.enum_type and (one.enum_type.full_name, one.enum_type.values_by_name.keys()),
            one.containing_oneof and one.containing_oneof.name,
        )
        for one in descriptor.fields
    }


OURS = descriptors(one.DESCRIPTOR for types in method_types(SERVICE).values() for one in types)
THEIRS = descriptors(
    one
    for file in (service_pb2, model_config_pb2)
    for one in file.DESCRIPTOR.message_types_by_name.values()
)


@pytest.mark.parametrize("name", sorted(OURS))
def test_messages(name):
    ours, theirs = fields(OURS[name]), fields(THEIRS[name])
    assert ours == {number: theirs[number] for number in ours}


def test_inference_and_health_are_whole():
    parts = (
        "Server",
        "ModelReady",
        "ModelMetadata",
        "ModelInfer",
        "Infer",
        "ModelStream",
        "Repository",
    )
    names = [
        one
        for one in THEIRS
        if one.startswith(tuple(f"inference.{part}" for part in parts)) and one in OURS
    ]
    assert len(names) > 30
    for one in set(names) - {"inference.ModelStatistics"}:
        assert fields(OURS[one]) == fields(THEIRS[one])


def test_methods():
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods_by_name
    ours = method_types(SERVICE)
    assert set(theirs) - set(ours) == OF_SHARED_MEMORY_AND_SETTINGS
    for name, (request, response) in ours.items():
        assert request.DESCRIPTOR.full_name == theirs[name].input_type.full_name
        assert response.DESCRIPTOR.full_name == theirs[name].output_type.full_name


def test_datatypes():
    ours = message("inference.ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type
    theirs = model_config_pb2.DataType.DESCRIPTOR
    assert {one.name: one.number for one in ours.values} == {
        one.name: one.number for one in theirs.values
    }
