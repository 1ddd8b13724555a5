"""A tunnel as `ssh -L` makes one: HOST:PORT:HOST:PORT, until its parent is gone."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def main(near: tuple[str, int], far: tuple[str, int], parent: int) -> None:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*far)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pass_on(reader, back), pass_on(there, writer))

    async with await asyncio.start_server(connected, *near):
        while os.getppid() == parent:
            await asyncio.sleep(0.1)
    os._exit(0)  # connections that are open end with it


if __name__ == "__main__":
    host, port, far_host, far_port = sys.argv[1].split(":")
    asyncio.run(main((host, int(port)), (far_host, int(far_port)), int(sys.argv[2])))
