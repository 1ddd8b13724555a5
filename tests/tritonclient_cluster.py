"""What a user of stock tritonclient does with a coordinator; run in an environment of its own.

    python tritonclient_cluster.py HOST:PORT MODEL arrays.npz

The arrays are pictures, one request each. Prints one JSON object. Nothing of this project is
imported.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from tritonclient_calls import refused


def input_of(x: np.ndarray, name: str = "image", datatype: str = "FP32") -> triton.InferInput:
    """A request's only input."""
    tensor = triton.InferInput(name, list(x.shape), datatype)
    tensor.set_data_from_numpy(x)
    return tensor


def told(answer: triton.InferResult) -> dict[str, Any]:
    """The logits of an answer and its parameters."""
    response = answer.get_response()
    values = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in response.parameters.items()
    }
    return {
        "logits": answer.as_numpy("logits").tolist(),
        "parameters": values,
        "id": response.id,
        "version": response.model_version,
    }


def everything(address: str, model: str, pictures: list[np.ndarray]) -> dict[str, Any]:
    """Every call that a coordinator answers; what came back, ready for JSON."""
    client = triton.InferenceServerClient(address)
    x = pictures[0]
    metadata = client.get_model_metadata(model, as_json=True)
    found = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": client.is_model_ready(model),
        "other_ready": client.is_model_ready("absent"),
        "server": client.get_server_metadata(as_json=True),
        "metadata": metadata,
        "index": {m.name: m.state for m in client.get_model_repository_index().models},
        "answers": [told(client.infer(model, [input_of(x)], request_id="s")) for x in pictures],
        "errors": {
            "shape": refused(client.infer, model, [input_of(x[:, :, :2])]),
            "dtype": refused(client.infer, model, [input_of(x.astype("f8"), datatype="FP64")]),
            "name": refused(client.infer, model, [input_of(x, "photo")]),
            "model": refused(client.infer, "absent", [input_of(x)]),
            "version": refused(client.infer, model, [input_of(x)], model_version="99"),
            "output": refused(
                client.infer, model, [input_of(x)], outputs=[triton.InferRequestedOutput("absent")]
            ),
            "load": refused(client.load_model, model),
        },
    }
    client.close()
    found["async"] = asyncio.run(at_once(address, model, pictures))
    with grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        found["health"] = {
            name: health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status
            for name in ("", model, "inference.GRPCInferenceService")
        }
        found["services"] = list(ProtoReflectionDescriptorDatabase(channel).get_services())
    return found


async def at_once(address: str, model: str, pictures: list[np.ndarray]) -> list[dict[str, Any]]:
    """The same pictures by the asynchronous client, side by side."""
    async with triton_aio.InferenceServerClient(address) as client:
        asked = (client.infer(model, [input_of(x)]) for x in pictures)
        return [told(answer) for answer in await asyncio.gather(*asked)]


if __name__ == "__main__":
    with np.load(sys.argv[3]) as arrays:
        given = [arrays[name] for name in sorted(arrays)]
    sys.stdout.write(json.dumps(everything(sys.argv[1], sys.argv[2], given)))
