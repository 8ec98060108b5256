"""A proxy that answers scripts itself: as a server that does not do them now."""

from statemgr.testing.proxy import Forwarder, Link, RespSplitter, Streams, command_of


class Refuser(Forwarder):
    """A proxy that answers scripts itself, with an error, as long as it is told to.

    Attributes:
        refusal: What it answers; empty to forward.
        count: How many it refuses.
        refused: How many it has refused.
    """

    refusal = b""
    count = 1 << 30
    refused = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def link(self, client: Streams, server: Streams) -> Link:
        return _RefusingLink(self, client, server)


class _RefusingLink(Link):
    def __init__(self, refuser: Refuser, client: Streams, server: Streams) -> None:
        super().__init__(client, server)
        self._refuser = refuser
        self._requests = RespSplitter()

    async def on_request_bytes(self, data: bytes) -> None:
        for request in self._requests.feed(data):
            refuser = self._refuser
            is_script = command_of(request)[0].startswith(b"EVAL")
            if is_script and refuser.refusal and refuser.count > 0:
                refuser.count -= 1
                refuser.refused += 1
                await self.send(self.client.writer, refuser.refusal)
            else:
                await self.send(self.server.writer, request)
