"""`StateToken` by itself: what every backend but the one in memory stores a state as."""

from benchmarks.states import Cart
from benchmarks.subject import Codec, Role, Subject
from statemgr import StateToken


def _codec() -> Codec:
    token = StateToken("user-42", Cart)
    return Codec(encode=token.serialize, decode=lambda data: token.deserialize(data=data))


SUBJECTS = (
    Subject(
        name="token",
        role=Role.OURS,
        summary="StateToken's serialize and deserialize, with no backend",
        codec=_codec,
    ),
)
