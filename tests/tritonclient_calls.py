"""What a user of stock tritonclient does with a server; run in an environment of its own.

    python tritonclient_calls.py HOST:PORT MODEL arrays.npz

Prints one JSON object. Nothing of this project is imported.
"""

from __future__ import annotations

import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton


def refused(function: Any, *words: Any, **named: Any) -> list[str]:
    """The status and the text with which a call is refused."""
    try:
        function(*words, **named)
    except triton.InferenceServerException as error:
        return [str(error.status()), str(error.message())]
    return ["OK", ""]


def everything(address: str, model: str, x: np.ndarray) -> dict[str, Any]:
    """Every call of the protocol; what came back, ready for JSON."""
    client = triton.InferenceServerClient(address)
    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(as_json=True),
        "index_before": states(client),
    }
    client.load_model(model)
    found["index_loaded"] = states(client)
    found["model_ready"] = client.is_model_ready(model)
    found["other_ready"] = client.is_model_ready("absent")
    found["metadata"] = client.get_model_metadata(model, as_json=True)

    metadata = client.get_model_metadata(model)
    name, output = metadata.inputs[0].name, metadata.outputs[0].name
    tensor = triton.InferInput(name, list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    wanted = triton.InferRequestedOutput(output)
    answer = client.infer(model, [tensor], outputs=[wanted], request_id="seven", client_timeout=60)
    response = answer.get_response()
    found["output"] = answer.as_numpy(output).tolist()
    found["id"] = response.id
    found["timings"] = {k: v.int64_param for k, v in response.parameters.items() if "_us" in k}
    found["version"] = response.model_version

    small = triton.InferInput(name, [1, 2, 2, 3], "FP32")
    small.set_data_from_numpy(np.zeros((1, 2, 2, 3), np.float32))
    found["errors"] = {
        "shape": refused(client.infer, model, [small]),
        "model": refused(client.infer, "absent", [tensor]),
        "version": refused(client.infer, model, [tensor], model_version="99"),
        "output": refused(
            client.infer, model, [tensor], outputs=[triton.InferRequestedOutput("absent")]
        ),
        "load": refused(client.load_model, "absent"),
        "statistics": refused(client.get_inference_statistics),
    }
    found["streamed"] = streamed(client, model, [tensor, small, tensor])
    client.unload_model(model)
    found["ready_after_unload"] = client.is_model_ready(model)
    found["errors"]["unloaded"] = refused(client.infer, model, [tensor])
    client.load_model(model)
    found["again"] = client.infer(model, [tensor]).as_numpy(output).tolist()
    client.close()
    return found


def streamed(
    client: triton.InferenceServerClient, model: str, tensors: list[triton.InferInput]
) -> list[list[Any]]:
    """Id and output, or the error, of each request of one stream.

    This client gives an error without the id, so that only the order tells whose it is.
    """
    came: queue.Queue[list[Any]] = queue.Queue()

    def answered(result: triton.InferResult | None, error: Exception | None) -> None:
        if result is None:
            came.put(["", None, str(error)])
            return
        response = result.get_response()
        came.put([response.id, result.as_numpy(response.outputs[0].name).tolist(), ""])

    client.start_stream(answered)
    try:
        for number, tensor in enumerate(tensors):
            client.async_stream_infer(model, [tensor], request_id=str(number))
        return [came.get(timeout=60) for _ in tensors]
    finally:
        client.stop_stream()


def states(client: triton.InferenceServerClient) -> dict[str, str]:
    """Model names and states of the repository index."""
    return {m.name: m.state for m in client.get_model_repository_index().models}


if __name__ == "__main__":
    with np.load(sys.argv[3]) as arrays:
        sys.stdout.write(json.dumps(everything(sys.argv[1], sys.argv[2], arrays["x"])))
