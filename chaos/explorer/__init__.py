"""The Redis protocol in every order: `python -m chaos explore`.

The real client and the real scripts run in one process and in virtual time, against a model of the
server. A scheduler decides at each step what happens next, by plan or by a seed; the judge looks at
what the server stored and at what callers were told. See docs/decisions/0024.

    schedule.py   one run: what may happen, what does
    choices.py    what is chosen, by plan or by chance
    explore.py    which schedules are run; the smallest one that shows a fault
    scenarios.py  what the processes do; process.py runs it
    loop.py       an event loop that is stepped; network.py: connections that are
    server.py     a model of Redis, with server.lua
    checks.py     what has to hold
    mutants.py    faulty protocols that have to be found
"""

from chaos.explorer.cli import add_arguments, main

__all__ = ["add_arguments", "main"]
