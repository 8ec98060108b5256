"""`python -m chaos mutants`: seeded faults of the backends, and what finds them.

A test that has never failed proves nothing: so each promise is broken on purpose, and a run says
what has found it (checking.py). Nobody tells it where to look. The kit's tests run in an order that
the seed makes until one fails, which on the sound backend does not; the state machine makes up
calls by the seed; where a fault shows by a cancel or by an unlucky order of steps, cancels and the
explorer look for it too.
"""

from chaos.mutants.command import add_arguments, main

__all__ = ["add_arguments", "main"]
