"""The command line of `python -m chaos cancels`, and its table."""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from chaos.cancels.calls import CALLS
from chaos.cancels.events import EVENT_CALLS, EventStage
from chaos.cancels.stage import Stage
from chaos.cancels.stores import Stores
from chaos.cancels.tally import Tally, cancel_everywhere

# Every backend has the same calls; events wait for what a backend waits for, and these differ.
_EVENTS_ON = ("memory", "disk", "redis", "redis through", "redis behind")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--backend", action="append", metavar="NAME", help="only this one; may be given again"
    )
    parser.add_argument(
        "--call", action="append", metavar="TEXT", help="only calls whose name has this in it"
    )
    parser.add_argument("--once", action="store_true", help="leave out the second cancels")


def main(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a cancel broke a promise."""
    stores = Stores()
    backends = arguments.backend or stores.names
    unknown = [name for name in backends if name not in stores.names]
    if unknown:
        print(f"no backend {unknown[0]!r}: there are {', '.join(stores.names)}")
        return 2
    console = Console(width=110)
    started = time.monotonic()
    tallies = []
    try:
        for tally in run(stores, backends, arguments.call or [""], twice=not arguments.once):
            tallies.append(tally)
            print(_line(tally), flush=True)
    finally:
        stores.close()
    print()
    console.print(_table(tallies))
    broken = [one for tally in tallies for one in tally.broken]
    print(
        f"\n{sum(tally.awaits for tally in tallies)} awaits, {sum(t.cancels for t in tallies)} "
        f"cancels in {sum(tally.runs for tally in tallies)} runs, "
        f"{time.monotonic() - started:.0f} s: {len(broken)} broke a promise"
    )
    for one in broken:
        print(f"  {one}")
    return 1 if broken or not tallies else 0


def run(
    stores: Stores, backends: Sequence[str], calls: Sequence[str], *, twice: bool
) -> Iterator[Tally]:
    """Cancel the calls whose names have one of these texts in them, and yield what was done."""
    for backend in backends:

        async def open_stage(backend: str = backend) -> Stage:
            return Stage(stores.make(backend))

        async def open_events(backend: str = backend) -> EventStage:
            return EventStage(stores.make(backend))

        for call in CALLS:
            if any(text in call.name for text in calls):
                doing = cancel_everywhere(backend, call, open_stage, twice=twice and call.main)
                yield asyncio.run(doing)
        for event_call in EVENT_CALLS if backend in _EVENTS_ON else ():
            if any(text in event_call.name for text in calls):
                again = twice and event_call.main
                yield asyncio.run(cancel_everywhere(backend, event_call, open_events, twice=again))


def _line(tally: Tally) -> str:
    phases = ", ".join(f"{count} {phase}" for phase, count in tally.phases.items() if phase)
    return (
        f"{tally.backend:<18} {tally.call:<29} {tally.awaits:>3} awaits, "
        f"{tally.cancels:>4} cancels, {tally.twice:>3} twice{f' ({phases})' if phases else ''}"
        + (f", {len(tally.broken)} BROKEN" if tally.broken else "")
    )


def _table(tallies: Sequence[Tally]) -> Table:
    """Return the awaits covered, by call and backend."""
    backends = list(dict.fromkeys(tally.backend for tally in tallies))
    found = {(tally.call, tally.backend): tally for tally in tallies}
    table = Table(box=box.SIMPLE_HEAD, title="awaits cancelled at", title_justify="left")
    table.add_column("call")
    for backend in backends:
        table.add_column(backend, justify="right")
    for call in dict.fromkeys(tally.call for tally in tallies):
        cells = [found.get((call, backend)) for backend in backends]
        table.add_row(call, *[_cell(tally) for tally in cells])
    table.add_section()
    totals = [sum(t.awaits for t in tallies if t.backend == backend) for backend in backends]
    table.add_row("all", *map(str, totals))
    return table


def _cell(tally: Tally | None) -> str:
    if tally is None:
        return "-"
    return f"{tally.awaits} ({len(tally.broken)} broken)" if tally.broken else str(tally.awaits)
