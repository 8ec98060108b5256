"""Deltas: what changed in an ident's states, as a client is told.

    delta = {state name: {field: value}}

A value is the field's whole new value: a copy that nothing changes any more, of the same types
as in the state. `msgspec.json.encode(delta)` turns it into what a browser reads. A field that is
gone has the value REMOVED; a state without named fields, such as a list, has the one field "".
Fields of a state whose names begin with an underscore stay on the server; what stands in a
field is sent whole.
"""

from collections.abc import Mapping
from typing import Any, TypeAlias

from statemgr.serialization.fields import REMOVED

Delta: TypeAlias = Mapping[str, Mapping[str, Any]]
"""The new values of what changed, by state name and field name."""

__all__ = ["REMOVED", "Delta"]
