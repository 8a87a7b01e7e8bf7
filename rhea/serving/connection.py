"""A connection that gives up on a client that takes nothing of its answer any more, and errs in our words.

A client may stop reading and stay. Its answer then waits in ``send`` for ever, and holds a place in the server and the
engine. Only who owns the socket can end that: closing would first wait for what is unsent, so it is aborted, which the
app hears as a client that left.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rhea.serving.errors import ApiError


def giving_up_after(seconds: float) -> type[H11Protocol]:
    """Return uvicorn's protocol, ended where something waits to be sent and none of it is taken for that long."""
    return type("Connection", (_Connection,), {"seconds": seconds})


class _Connection(H11Protocol):
    seconds: float
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.set_write_buffer_limits(0)  # writing pauses whenever the system takes no more, and so is watched
        super().connection_made(transport)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_watch()

    def resume_writing(self) -> None:
        self._end_watch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_watch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, which never comes to the app; an answer that has begun can only be cut off."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        error = ApiError(400, "this is no valid HTTP/1.1 request", code="bad_request").response()
        head = f"HTTP/1.1 400 Bad Request\r\ncontent-length: {len(error.body)}\r\n"
        self.transport.write(f"{head}content-type: application/json\r\nconnection: close\r\n\r\n".encode() + error.body)
        self.transport.close()

    def _begin_watch(self) -> None:
        left = self.transport.get_write_buffer_size()  # less and less: the app waits, and writes no more
        self._watch = self.loop.call_later(self.seconds, self._judge, left)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _judge(self, left: int) -> None:
        if self.transport.get_write_buffer_size() < left:  # slow, but it reads
            self._begin_watch()
        else:
            self.transport.abort()
