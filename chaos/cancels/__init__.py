"""`python -m chaos cancels`: every call is cancelled at each of its awaits, on every backend.

A call is run again and again, driven step by step (stepping.py): cancelled before its first step,
then at its first await, its second, and so on until it ends before that. At each await the cancel
comes at three moments: as the wait begins, while it waits, and in the turn that brings its result.
The calls that change something are also cancelled a second time, at each await of what they do
after the first cancel.

After each run the lock is free, those who queued behind have had their turn, the state is the old
one or the new one as a whole, nothing that is made afterwards is lost, and no task, file or place
in a queue is left (stage.py).
"""

from chaos.cancels.command import add_arguments, main

__all__ = ["add_arguments", "main"]
