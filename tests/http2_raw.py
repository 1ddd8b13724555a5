"""HTTP/2 by hand, for clients that no library would write: half a request, answers never read.

RFC 9113, frames; RFC 7541, header fields as literals without Huffman coding.
"""

from __future__ import annotations

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS = 0, 1, 4
ACK = END_STREAM = 1
END_HEADERS = 4
INITIAL_WINDOW = 4
FRAME_BYTES = 16384


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(initial_window: int | None = None) -> bytes:
    """Our settings; with a window of 0 the peer may send no data until told to."""
    value = b"" if initial_window is None else struct.pack(">HI", INITIAL_WINDOW, initial_window)
    return frame(SETTINGS, 0, 0, value)


def headers(path: str, stream: int) -> bytes:
    """The headers of a gRPC call."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, END_HEADERS, stream, block)


def message(data: bytes, stream: int) -> bytes:
    """One gRPC message as data frames that end the stream."""
    body = b"\0" + struct.pack(">I", len(data)) + data
    pieces = [body[i : i + FRAME_BYTES] for i in range(0, len(body), FRAME_BYTES)]
    return b"".join(
        frame(DATA, END_STREAM if piece is pieces[-1] else 0, stream, piece) for piece in pieces
    )


def connected(address: str, initial_window: int | None = None) -> socket.socket:
    """A connection whose HTTP/2 handshake is done."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=30)
    made.sendall(PREFACE + settings(initial_window))
    received = b""
    while len(received) < 9:
        piece = made.recv(9 - len(received))
        assert piece, "the connection was closed before the settings came"
        received += piece
    assert received[3] == SETTINGS
    made.sendall(frame(SETTINGS, ACK, 0))
    return made


def closed_within(connection: socket.socket, seconds: float) -> bool:
    """Whether the peer closes the connection; what it sends before is thrown away."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            if not connection.recv(65536):
                return True
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return False
