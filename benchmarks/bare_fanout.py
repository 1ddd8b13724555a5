"""The bare grpc.aio fan-out that the coordinator is measured against.

    python benchmarks/bare_fanout.py ADDRESS=MODEL...

Parses a ModelInferRequest, serialises it once, sends it to every worker at once with the name of its
model, and answers with the parsed answer of the worker that took longest by its own clock. Prints
its address; ends at the end of its input.
"""

from __future__ import annotations

import asyncio
import sys

import grpc
import grpc.aio

from partition.serving.heap import keep_freed_memory
from runtime.wire.descriptors import INFERENCE, methods

MESSAGE_BYTES = 64 * 2**20
OPTIONS = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
]


async def main() -> None:
    method = methods(INFERENCE)["ModelInfer"]
    workers = [word.partition("=") for word in sys.argv[1:]]
    channels = [grpc.aio.insecure_channel(address, OPTIONS) for address, _, _ in workers]
    asks = [
        channel.unary_unary(method.path, response_deserializer=method.response.FromString)
        for channel in channels
    ]
    # Protobuf takes what stands last.
    tails = [method.request(model_name=model).SerializeToString() for _, _, model in workers]

    async def infer(request: object, context: object) -> object:
        data = request.SerializeToString()  # type: ignore[attr-defined]
        answers = await asyncio.gather(
            *(ask(data + tail, timeout=60) for ask, tail in zip(asks, tails, strict=True))
        )
        return max(answers, key=lambda answer: answer.parameters["total_us"].int64_param)

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(INFERENCE, {method.name: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)
    for channel in channels:
        await channel.close()


if __name__ == "__main__":
    keep_freed_memory()  # as the coordinator does
    asyncio.run(main())
