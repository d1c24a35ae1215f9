"""Ports that nobody else gets: of a server that goes away and comes back, or of none at all."""

from __future__ import annotations

import socket

__all__ = ["KeptPort"]


class KeptPort:
    """A loopback port that the system gives to nobody who asks for any port. A server may listen on it.

    Args:
        number: This port, whose server is gone. 0: any port that is free.
    """

    def __init__(self, number: int = 0) -> None:
        # It is bound and does not listen: a server that sets SO_REUSEADDR, as servers do, can still have it.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", number))
        self.number: int = self._holder.getsockname()[1]

    def release(self) -> None:
        """Give it back to the system."""
        self._holder.close()
