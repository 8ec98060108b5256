"""Kill a program that writes states, again and again, and look at what is left each time.

    cd tests && ../.venv/bin/python -m disk.crash --kills 500

The tests run the same for fewer kills: see test_kill.py.
"""

import argparse
import asyncio
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from statemgr import StateManagerDisk, StateToken

from .programs import Zygote, pause
from .workers import Page, Sheet

DEBOUNCE = 0.001  # seconds
MODES: Mapping[str, dict[str, Any]] = {
    "shared": {},
    "fsync": {"fsync": True},
    "exclusive": {"exclusive": True},
    "debounced": {"exclusive": True, "debounce": DEBOUNCE},
}
SCENARIOS = [(mode, together) for mode in MODES for together in (False, True)]
IDENTS = ["one", "two"]

_LINES = 24  # a kill comes after at most so many
_LINES_DEBOUNCED = 60  # where most of the first ones are not written yet
_LONGEST_PAUSE = 0.004  # seconds from the last line to the kill: most writes take less


@dataclass
class Figures:
    """What came of a number of kills.

    Attributes:
        kills: How many there were.
        begun: Changes that had begun.
        acknowledged: Those whose call had returned.
        unacknowledged: Those that a kill cut short, and that were there nevertheless.
        lost: Those that were acknowledged, and were not there.
        doubled: Those that were there, and that nobody had begun.
    """

    kills: int = 0
    begun: int = 0
    acknowledged: int = 0
    unacknowledged: int = 0
    lost: int = 0
    doubled: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name)}" for field in fields(self))


def crash(
    zygote: Zygote, directory: Path, mode: str, kills: int, seed: int, *, together: bool
) -> Figures:
    """Kill a writer at random moments.

    Args:
        zygote: What starts it.
        directory: An empty directory.
        mode: One of `MODES`.
        kills: How often.
        seed: What sizes and moments are drawn by.
        together: Whether it writes two classes together.

    Returns:
        What came of it. In a mode that is not to lose anything, `lost` is to be 0.

    Raises:
        AssertionError: If a state is not whole, or of the two classes one is older.
    """
    drawn = random.Random(f"{mode} {together} {seed}")  # noqa: S311
    figures = Figures()
    reached = [0] * len(IDENTS)  # what each page is known to have
    for _ in range(kills):
        writer = zygote.start(
            "turn_pages",
            directory=str(directory),
            idents=IDENTS,
            together=together,
            seed=drawn.getrandbits(32),
            **MODES[mode],
        )
        writer.hear_lines(drawn.randrange(_LINES_DEBOUNCED if mode == "debounced" else _LINES))
        pause(drawn.random() * _LONGEST_PAUSE)
        assert writer.kill(), "a writer has ended by itself"
        figures.kills += 1
        found = asyncio.run(_find(directory, mode, drawn.randrange(3), together=together))
        for number in range(len(IDENTS)):
            said = [words for words in writer.heard if words[1] == str(number)]
            done = [int(words[2]) for words in said if words[0] == "done"]
            begun = len(said) - len(done)
            expected = range(reached[number] + 1, reached[number] + 1 + len(done))
            assert done == list(expected), "a writer went on from something else than was found"
            acknowledged = reached[number] + len(done)
            figures.begun += begun
            figures.acknowledged += len(done)
            figures.lost += max(0, acknowledged - found[number])
            figures.doubled += max(0, found[number] - (reached[number] + begun))
            figures.unacknowledged += max(0, found[number] - acknowledged)
            assert found[number] >= reached[number], "what was found once is gone"
            reached[number] = found[number]
    asyncio.run(_tidy(directory))
    names = sorted(path.name for path in (directory / "states").iterdir())
    assert len({name.partition(".")[0] for name in names}) == 2 * len(IDENTS), names
    assert all(name.partition(".")[2] in ("", "0", "1") for name in names), names
    assert not list(directory.glob("quarantine/*"))
    return figures


async def _find(directory: Path, mode: str, way: int, *, together: bool) -> list[int]:
    """Return the numbers of the pages: by a reader, under the lock, or by an exclusive manager.

    Either of the first two may be what finds an interrupted commit.
    """
    classes = (Page, Sheet) if together else (Page,)
    options = MODES[mode] if mode == "fsync" or way == 2 else {}
    numbers: list[int] = []
    async with StateManagerDisk(directory, **options) as manager:
        for ident in IDENTS:
            tokens = [StateToken(ident, cls) for cls in classes]
            if way:
                modification = manager.modify_states(*tokens)
                async with modification as states:
                    modification.discard()
            else:
                states = await manager.get_states(*tokens)
            assert all(state.is_whole() for state in states), "a state is not whole"
            assert len({state.number for state in states}) == 1, "a commit was done by halves"
            numbers.append(states[0].number)
    return numbers


async def _tidy(directory: Path) -> None:
    """Change all once more: that is to use or remove what the kills have left."""
    async with StateManagerDisk(directory) as manager:
        for ident in IDENTS:
            async with manager.modify_states(StateToken(ident, Page), StateToken(ident, Sheet)):
                pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all scenarios and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500, help="kills for each scenario")
    parser.add_argument("--seed", type=int, default=random.getrandbits(32))
    parser.add_argument("--directory", help="where; a temporary one if none is given")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}")  # noqa: T201
    with tempfile.TemporaryDirectory(dir=options.directory) as base, Zygote() as zygote:
        for mode, together in SCENARIOS:
            directory = Path(base, f"{mode}-{together}")
            figures = crash(zygote, directory, mode, options.kills, options.seed, together=together)
            what = "two classes together" if together else "one class"
            print(f"{mode}, {what}: {figures}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
