"""Compressed bodies, decoded while they come, within the limit of a body."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.middleware.limit_body import too_large
from server.errors import UnsupportedMediaType
from steering.errors import RequestError

_PIECE_BYTES = 1 << 20  # decoded at a time: a small body may hold a thousand times its size
_GZIP = zlib.MAX_WBITS | 16
_CODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": zlib.MAX_WBITS}
_ABOUT_BODY = (b"content-encoding", b"content-length")
_ZLIB = 8  # low half of the first byte of a zlib header; deflate also comes without one


def decode_body(app: ASGIApp, max_bytes: int) -> ASGIApp:
    """Give the app bodies of gzip and deflate as they were before.

    Raise BodyTooLarge in the app as soon as more than the limit is decoded, RequestError for a
    damaged body, UnsupportedMediaType for another coding.
    """

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        names = ",".join(Headers(scope=scope).getlist("content-encoding"))
        coding = names.strip().lower()
        if coding in ("", "identity"):
            return await app(scope, receive, send)
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in _ABOUT_BODY]
        decoder = _Decoder(coding)
        size, more, ended = 0, True, False

        async def receive_decoded() -> Message:
            nonlocal size, more, ended
            if ended:
                return await receive()  # only a disconnect is left: a stream waits for it
            if coding not in _CODINGS:
                raise UnsupportedMediaType(
                    f"the content-encoding is {coding[:60]!r}; send gzip, deflate, or the body as"
                    " it is"
                )
            while more and not decoder.pending:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                decoder.pending, more = message.get("body", b""), message.get("more_body", False)
            piece = await asyncio.to_thread(decoder.next_piece, ends=not more)
            size += len(piece)
            if size > max_bytes:
                raise too_large(size, max_bytes)
            ended = not (more or decoder.has_more)
            return {"type": "http.request", "body": piece, "more_body": not ended}

        await app(scope, receive_decoded, send)

    return call


@dataclass(slots=True, eq=False)
class _Decoder:
    """The decoder of one body, a piece at a time."""

    coding: str
    pending: bytes = b""  # received and not decoded
    has_more: bool = False  # whether another piece may come of what was received
    _inflater: Any = field(default=None)  # zlib's, whose class has no name

    def next_piece(self, *, ends: bool) -> bytes:
        """The next bytes of the body; RequestError if it is damaged, or `ends` too early."""
        if self._inflater is None:
            if not self.pending:
                return b""
            self._inflater = zlib.decompressobj(self._window_bits())
        try:
            piece: bytes = self._inflater.decompress(self.pending, _PIECE_BYTES)
        except zlib.error:
            raise self._damaged("can't be read") from None
        self.pending = self._inflater.unconsumed_tail
        if self._inflater.unused_data:
            raise self._damaged("goes on behind its end")
        self.has_more = not self._inflater.eof
        if ends and self.has_more and not piece and not self.pending:
            raise self._damaged("is cut short")
        return piece

    def _window_bits(self) -> int:
        without_header = self.coding == "deflate" and self.pending[0] & 15 != _ZLIB
        return -zlib.MAX_WBITS if without_header else _CODINGS[self.coding]

    def _damaged(self, fault: str) -> RequestError:
        return RequestError(
            f"the body is {self.coding} by its content-encoding, and {fault}; send it whole, or"
            " without compression"
        )
