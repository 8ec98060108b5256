"""Every key, field and channel in Redis, and nothing else that names one.

One key holds all there is of an ident: its lock, the queue for it, and a record per class.
So each script touches one key, which Cluster moves from node to node as a whole, and which is
evicted or expires as a whole; a lock never outlives what it guards, or the other way round.

`PREFIX:{LOCK_KEY}` is a hash. Its TTL in Redis is never shorter than what any field needs;
what has expired by its own field is gone for every reader, and removed later.

    field       what
    lock        who has the lock, and who waits for it; see below
    s:CLASS     the record of the state of a class (see statemgr/record.py)
    d:CLASS     when that state expires: 15 digits of ms, then the size of the state in bytes
    c:INSTANCE  the last commit of an instance, by which a repeated one is known: its number,
                when it was done, and its owner's NUMBER, with a space between two

The lock is one field, because the scripts have need of all of it, and reading and writing one
field takes a third of the time that eight do. Its parts, with a space between two:

    owner       whose the lock is, INSTANCE.NUMBER; empty while it is free
    until       when it expires unless it is renewed
    term        for how long it was granted or renewed
    since       since when it has been held without a gap
    fence       the number of the last grant
    kept        1 while its owner wants to be told that somebody waits, else 0
    prune       when fields that nobody needs any more are looked for next
    wait        the owners that wait, in the order of their asking, with a space between two

Times are ms of the server's clock since the epoch, durations ms.

CLASS is the part of a `cache_key` after the slash. LOCK_KEY is percent-encoded: it holds no
brace and no colon.

`PREFIX:{LOCK_KEY}:kept:CLASS:DIGEST` is a record that could not be decoded, set aside by a
manager with `on_decode_error="reset"`. It has no TTL: somebody is to look at it.

`PREFIX:inbox:INSTANCE` is the channel that one manager listens on. A message is an owner: if
it waits, its turn has come; if it has the lock, somebody else waits for it.
"""

from statemgr.token import AnyToken, ident_of

_GLOB_SPECIAL = str.maketrans({character: f"\\{character}" for character in r"*?[]^-\\"})


class Keys:
    """Make the keys that begin with one prefix."""

    def __init__(self, prefix: str) -> None:
        self._start = f"{prefix}:{{"
        self._inbox = f"{prefix}:inbox:"
        self._pattern = prefix.translate(_GLOB_SPECIAL) + ":{"

    def ident(self, lock_key: str) -> str:
        """Return the key of an ident."""
        return f"{self._start}{lock_key}}}"

    def kept(self, token: AnyToken, digest: str) -> bytes:
        """Return the key that an undecodable record is set aside under."""
        return b"%b:kept:%b:%b" % (
            self.ident(token.lock_key).encode(),
            class_of(token),
            digest.encode(),
        )

    def inbox(self, instance: str) -> str:
        """Return the channel of an instance."""
        return self._inbox + instance

    def pattern(self, start: str) -> str:
        """Return the glob-style pattern of the keys of idents whose lock key starts so."""
        return f"{self._pattern}{start}*}}"

    def ident_of(self, key: bytes) -> str:
        """Return the ident of an ident's key."""
        return ident_of(key.decode()[len(self._start) : -1])


def class_of(token: AnyToken) -> bytes:
    """Return what tells the classes of an ident apart."""
    # surrogatepass: a class may have any name.
    return token.cache_key[len(token.lock_key) + 1 :].encode("utf-8", "surrogatepass")
