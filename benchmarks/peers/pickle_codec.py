"""The standard library's pickle: what a state would be serialized with otherwise."""

import pickle
from functools import partial

from benchmarks.subject import Codec, Role, Subject


def _codec() -> Codec:
    encode = partial(pickle.dumps, protocol=pickle.HIGHEST_PROTOCOL)
    return Codec(encode, decode=pickle.loads)


SUBJECTS = (
    Subject(
        name="pickle",
        role=Role.PEER,
        summary="the standard library's pickle, highest protocol",
        against=("token",),
        always=True,
        lacks=(
            "loading runs code",
            "no migration of changed classes",
            "a class that moved cannot be loaded",
        ),
        codec=_codec,
    ),
)
