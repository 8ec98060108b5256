"""The scripts that run inside of Redis: one transition each, with its contract at its head."""

import hashlib
from importlib import resources
from typing import Final


class Script:
    """One script, known to a server by the digest of its source.

    Attributes:
        name: Its file's name.
        source: What the server is given when it does not know the script.
        sha: The digest, as EVALSHA takes it.
    """

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str) -> None:
        directory = resources.files(__package__)
        self.name = name
        self.source = "".join(
            directory.joinpath(f"{part}.lua").read_text("utf-8") for part in ("common", name)
        ).encode()
        # What Redis calls scripts by; nothing relies on its strength.
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()


ACQUIRE: Final = Script("acquire")
COMMIT: Final = Script("commit")
DESCRIBE: Final = Script("describe")
EXTEND: Final = Script("extend")
READ: Final = Script("read")
RELEASE: Final = Script("release")
