"""Owns the lean wire form: unary gRPC over one HTTP/2 connection, with callbacks instead of tasks.

grpc.aio spends about 200 µs of Python on a call, this about a tenth, so that one core of load
can saturate a gateway. It speaks the part of RFC 9113 that unary calls need (no push, no
priorities, no TLS) and refuses to retry: whoever calls decides (client/load.py).
"""

import asyncio
import struct
from collections import deque
from collections.abc import Callable
from typing import Final

from hongbao.client import hpack
from hongbao.client.status import ANSWER_LATE, ANSWER_LOST, INTERNAL, OK, Answer, answer_of

_FRAME: Final = struct.Struct(">HBBBI")  # length u24 as u16 and u8, type, flags, stream
_U32: Final = struct.Struct(">I")
_SETTING: Final = struct.Struct(">HI")
_MESSAGE: Final = struct.Struct(">BI")
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_BYTES: Final = (1 << 31) - 1
_WINDOW_DEFAULT: Final = 65_535
_STREAM_MAX: Final = (1 << 31) - 1
_STREAMS_MAX: Final = 1_000  # of one connection, if the server names no limit itself
_WAITING_MAX: Final = 100_000  # calls that wait for a stream; beyond it a call fails at once
_STATUS_CACHE_MAX: Final = 4_096
_REPLY_BYTES_MAX: Final = 1 << 20


Done = Callable[[Answer, bytes], None]  # status and the reply's protobuf bytes


def frame_message(message: bytes) -> bytes:
    """Return the length-prefixed form of a protobuf message, ready for `Wire.call`."""
    return _MESSAGE.pack(0, len(message)) + message


def request_headers(path: str, authority: str, timeout_s: float) -> bytes:
    """Return the header block of every call of one method, ready for `Wire.call`."""
    return hpack.encode_block(
        [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", authority),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            ("grpc-timeout", f"{max(1, round(timeout_s * 1000))}m"),
        ]
    )


class _Call:
    __slots__ = ("answer", "block", "body", "deadline", "done", "message", "stream")

    def __init__(self, block: bytes, message: bytes, deadline: float, done: Done) -> None:
        self.block = block
        self.message = message
        self.deadline = deadline
        self.done: Done | None = done
        self.answer: Answer | None = None
        self.body = b""
        self.stream = 0


class Wire(asyncio.Protocol):
    """Is one connection; after `alive` turned False it never comes back: make a new one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: Callable[[], None]) -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._deadlines: dict[float, deque[_Call]] = {}  # by timeout, so each is in order
        self._statuses: dict[bytes, Answer | None] = {}
        self._out: list[bytes] = []
        self._rest = b""
        self._fragment: tuple[int, int, bytes] | None = None
        self._next_stream = 1
        self._streams_max = _STREAMS_MAX
        self._stream_window = _WINDOW_DEFAULT
        self._send_window = _WINDOW_DEFAULT
        self._received = 0
        self._last_heard = loop.time()
        self.alive = False

    # -- calls ---------------------------------------------------------------------------------

    def call(self, block: bytes, message: bytes, timeout_s: float, done: Done) -> None:
        """Send one call; `done` is called exactly once, never from inside this call."""
        call = _Call(block, message, self._loop.time() + timeout_s, done)
        if not self.alive or len(self._waiting) >= _WAITING_MAX:
            self._loop.call_soon(done, ANSWER_LOST, b"")
            return
        deadlines = self._deadlines.get(timeout_s)
        if deadlines is None:
            deadlines = self._deadlines[timeout_s] = deque()
        deadlines.append(call)
        if self._waiting or not self._may_send(call):
            self._waiting.append(call)
        else:
            self._send(call)

    @property
    def in_flight(self) -> int:
        return len(self._calls) + len(self._waiting)

    @property
    def has_free_stream(self) -> bool:
        """Say whether the next call leaves at once; else it waits here."""
        return not self._waiting and len(self._calls) < self._streams_max

    def expire(self, now: float, silence_s: float) -> None:
        """Answer calls whose deadline has passed; drop the connection after a long silence."""
        expired = 0
        for deadlines in self._deadlines.values():
            while deadlines and (deadlines[0].done is None or deadlines[0].deadline <= now):
                expired += self._expire(deadlines.popleft())
        if expired and now - self._last_heard > silence_s:
            self.close()

    def _expire(self, call: _Call) -> int:
        """Answer a late call; its stream stays taken until the server ends it.

        No RST_STREAM: grpc-timeout tells the server already, and Envoy closes connections on
        which most streams are reset (CVE-2023-44487), which would hit the calls beside it.
        """
        if call.done is None:
            return 0
        self._finish(call, ANSWER_LATE)
        return 1

    def close(self) -> None:
        self.alive = False
        if self._transport is not None:
            self._transport.abort()

    def _may_send(self, call: _Call) -> bool:
        size = len(call.message)
        return (
            len(self._calls) < self._streams_max
            and size <= self._send_window
            and size <= self._stream_window
        )

    def _send(self, call: _Call) -> None:
        stream = call.stream = self._next_stream
        self._next_stream += 2
        self._calls[stream] = call
        block, message = call.block, call.message
        size = len(message)
        self._send_window -= size
        self._write(
            _FRAME.pack(len(block) >> 8, len(block) & 255, _HEADERS, _END_HEADERS, stream)
            + block
            + _FRAME.pack(size >> 8, size & 255, _DATA, _END_STREAM, stream)
            + message
        )
        if self._next_stream > _STREAM_MAX - 2:
            self.alive = False

    def _send_waiting(self) -> None:
        waiting = self._waiting
        while waiting and (waiting[0].done is None or self._may_send(waiting[0])):
            call = waiting.popleft()
            if call.done is not None:
                self._send(call)

    def _finish(self, call: _Call, answer: Answer) -> None:
        done, call.done = call.done, None
        if done is None:
            return
        body = call.body
        if answer.code == OK and (len(body) < 5 or body[0] or len(body) - 5 != _body_size(body)):
            answer = Answer(INTERNAL, "the reply is not one whole message")
        done(answer, body[5:])

    def _write(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(out))

    # -- connection ----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = _SETTING.pack(1, 0) + _SETTING.pack(2, 0) + _SETTING.pack(4, _WINDOW_BYTES)
        transport.write(
            _PREFACE
            + _FRAME.pack(0, len(settings), _SETTINGS, 0, 0)
            + settings
            + _FRAME.pack(0, 4, _WINDOW, 0, 0)
            + _U32.pack(_WINDOW_BYTES - _WINDOW_DEFAULT)
        )
        self.alive = True

    def connection_lost(self, error: Exception | None) -> None:
        self.alive = False
        self._transport = None
        calls = [*self._calls.values(), *self._waiting]
        self._calls.clear()
        self._waiting.clear()
        self._deadlines.clear()
        for call in calls:
            self._finish(call, ANSWER_LOST)
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        self._last_heard = self._loop.time()
        if self._rest:
            data = self._rest + data
        position, end = 0, len(data)
        while end - position >= 9:
            high, low, kind, flags, stream = _FRAME.unpack_from(data, position)
            stop = position + 9 + (high << 8 | low)
            if stop > end:
                break
            payload = data[position + 9 : stop]
            position = stop
            if kind == _DATA:
                self._on_data(stream, flags, payload)
            elif kind in (_HEADERS, _CONTINUATION):
                self._on_headers(kind, stream, flags, payload)
            else:
                self._on_control(kind, stream, flags, payload)
        self._rest = data[position:]
        if self._waiting:
            self._send_waiting()

    # -- frames --------------------------------------------------------------------------------

    def _on_data(self, stream: int, flags: int, payload: bytes) -> None:
        self._received += len(payload)
        if self._received > 1 << 24:
            self._write(_FRAME.pack(0, 4, _WINDOW, 0, 0) + _U32.pack(self._received))
            self._received = 0
        call = self._calls.get(stream)
        if call is None:
            return
        if flags & _PADDED:
            payload = payload[1 : len(payload) - payload[0]]
        call.body = call.body + payload if call.body else payload
        if flags & _END_STREAM or len(call.body) > _REPLY_BYTES_MAX:
            del self._calls[stream]
            self._finish(call, call.answer or Answer(INTERNAL, "no status"))

    def _on_headers(self, kind: int, stream: int, flags: int, payload: bytes) -> None:
        if kind == _HEADERS:
            if flags & (_PADDED | _PRIORITY):
                payload = _strip(payload, flags)
        elif self._fragment is not None:
            stream, first_flags, earlier = self._fragment
            payload, flags = earlier + payload, flags | first_flags & _END_STREAM
        if not flags & _END_HEADERS:
            self._fragment = (stream, flags, payload)
            return
        self._fragment = None
        call = self._calls.get(stream)
        if call is None:
            return
        answer = self._statuses.get(payload) or self._learn(payload)
        if answer is not None:
            call.answer = answer
        if flags & _END_STREAM:
            del self._calls[stream]
            self._finish(call, call.answer or Answer(INTERNAL, "no status"))

    def _learn(self, block: bytes) -> Answer | None:
        if block in self._statuses:
            return None
        try:
            answer = answer_of(hpack.decode_block(block))
        except (hpack.BadBlock, IndexError, ValueError) as error:
            answer = Answer(INTERNAL, f"unreadable headers: {error}")
        if len(self._statuses) >= _STATUS_CACHE_MAX:
            self._statuses.clear()
        self._statuses[block] = answer
        return answer

    def _on_control(self, kind: int, stream: int, flags: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            self._on_settings(payload)
        elif kind == _WINDOW and stream == 0:
            self._send_window += _U32.unpack(payload)[0]
        elif kind == _PING and not flags & _ACK:
            self._write(_FRAME.pack(0, 8, _PING, _ACK, 0) + payload)
        elif kind == _RST and (call := self._calls.pop(stream, None)) is not None:
            self._finish(call, ANSWER_LOST)
        elif kind == _GOAWAY:
            self._on_goaway(_U32.unpack_from(payload)[0])

    def _on_settings(self, payload: bytes) -> None:
        for name, value in _SETTING.iter_unpack(payload):
            if name == 3:
                self._streams_max = min(value, _STREAMS_MAX)
            elif name == 4:
                self._stream_window = value
        self._write(_FRAME.pack(0, 0, _SETTINGS, _ACK, 0))

    def _on_goaway(self, last_stream: int) -> None:
        """Let the calls that the server still answers finish; hand the others back."""
        self.alive = False
        unanswered = [call for stream, call in self._calls.items() if stream > last_stream]
        for call in unanswered:
            del self._calls[call.stream]
        unanswered += self._waiting
        self._waiting.clear()
        for call in unanswered:
            self._finish(call, ANSWER_LOST)
        self._on_lost()


def _body_size(body: bytes) -> int:
    return int.from_bytes(body[1:5], "big")


def _strip(payload: bytes, flags: int) -> bytes:
    if flags & _PADDED:
        payload = payload[1 : len(payload) - payload[0]]
    return payload[5:] if flags & _PRIORITY else payload
