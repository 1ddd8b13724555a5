"""The bare grpc.aio server that the agent is measured against.

    python benchmarks/agent_echo.py ANSWER_BYTES [ARTEFACT]

Parses a ModelInferRequest and answers with a ModelInferResponse of ANSWER_BYTES. With an artefact it
runs that in between, in the handler itself, and tells compute_us: the least that a Python server of
this engine can do. Prints its address; ends at the end of its input.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np

from runtime.sessions import open_session
from runtime.wire.descriptors import INFERENCE, methods

MESSAGE_BYTES = 64 * 2**20


async def main() -> None:
    size = int(sys.argv[1])
    method = methods(INFERENCE)["ModelInfer"]
    answer = method.response()
    answer.raw_output_contents.append(bytes(size))
    answer.raw_output_contents[0] = bytes(max(0, 2 * size - answer.ByteSize()))
    session = open_session(Path(sys.argv[2])) if len(sys.argv) > 2 else None

    async def infer(request: Any, context: object) -> object:
        if session is not None:
            x = np.frombuffer(request.raw_input_contents[0], session.input.dtype)
            x = x.reshape(session.input.shape)
            begun = time.perf_counter_ns()
            session.run(x)
            spent = time.perf_counter_ns() - begun
            answer.parameters["compute_us"].int64_param = spent // 1000
        return answer

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
    table = grpc.method_handlers_generic_handler(INFERENCE, {method.name: handler})
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES)])
    server.add_generic_rpc_handlers((table,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main())
