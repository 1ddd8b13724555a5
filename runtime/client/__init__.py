"""Talk to a device agent: AgentClient blocks, AsyncAgentClient is the same for asyncio.

    with AgentClient("raspberrypi:8001") as agent:
        agent.upload(Path("out"), "shvit")
        agent.load("shvit")
        print(agent.infer("shvit", picture_BCHW).output.argmax())

One connection serves all the calls of a client and comes back by itself after a failure; a blocking
client may be used from several threads. Every call has a deadline, `timeout_s`. Calls that only
read, and `infer`, are tried again where the agent could not be reached. Every call raises
AgentFault, which has the gRPC status and says what to do, and RuntimeFault for what is wrong here.
"""

from __future__ import annotations

from runtime.client.aio import AsyncAgentClient
from runtime.client.channel import Access, read_token
from runtime.client.errors import AgentFault
from runtime.client.results import (
    Device,
    Held,
    InferResult,
    ModelMetadata,
    ModelState,
    ServerMetadata,
)
from runtime.client.sync import AgentClient

__all__ = [
    "Access",
    "AgentClient",
    "AgentFault",
    "AsyncAgentClient",
    "Device",
    "Held",
    "InferResult",
    "ModelMetadata",
    "ModelState",
    "ServerMetadata",
    "read_token",
]
