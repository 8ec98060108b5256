"""The command line: its options, their defaults, and what is wrong with bad ones."""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from benchmarks.scenario import Scale

PROGRAM = "python -m benchmarks"

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for, defaults filled in.

    Attributes:
        backends: Names of backends or variants; empty for the usual ones.
        scenarios: Names of scenarios; empty for all.
        peers: Whether to measure the peers and variants that are not always measured.
        scale: How much to do.
        rounds: How often to measure each case and subject.
        directory: Where temporary directories are made.
        redis_url: A Redis server of the user's; None has one started for each measurement.
        json: The file to write everything to.
        list: Whether to list what there is, and to measure nothing.
    """

    backends: tuple[str, ...]
    scenarios: tuple[str, ...]
    peers: bool
    scale: Scale
    rounds: int
    directory: Path
    redis_url: str | None
    json: Path | None
    list: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line; `--help` has the rest."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def _at_least(least: N, kind: Callable[[str], N]) -> Callable[[str], N]:
    def parse(text: str) -> N:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not least <= value < 1e12:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} on")
        return value

    return parse


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _tasks(text: str) -> tuple[int, ...]:
    parse = _at_least(1, int)
    return tuple(dict.fromkeys(parse(part) for part in text.split(",")))


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return path


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return path.resolve()


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Measure statemgr beside what a user would pick instead, and print ratios. "
        "Each measurement is a process of its own.",
        epilog="benchmarks/README.md tells how to read the table, and how to add to it.",
    )
    parser.add_argument(
        "--backends",
        type=_names,
        default=(),
        metavar="NAMES",
        help="comma-separated backends, with all their variants, or single variants such as "
        "memory/no-rollback (default: all but the variants that --list calls optional)",
    )
    parser.add_argument(
        "--scenarios",
        type=_names,
        default=(),
        metavar="NAMES",
        help="comma-separated scenarios (default: all but the optional ones, which --peers and "
        "--full bring)",
    )
    parser.add_argument(
        "--peers",
        action="store_true",
        help="measure the peers and the optional variants too; if a peer is not installed, "
        "everything is measured in .venv-bench, which is made once",
    )
    parser.add_argument(
        "--tasks",
        type=_tasks,
        metavar="NUMBERS",
        help="comma-separated numbers of tasks side by side; contended and hot take the largest "
        "(default: each scenario's own, 1 and 64 for changes)",
    )
    parser.add_argument(
        "--tokens",
        type=_at_least(1, int),
        metavar="N",
        help="number of tokens (default: each scenario's own)",
    )
    parser.add_argument(
        "--seconds",
        type=_at_least(0.001, float),
        metavar="S",
        help="time for one measurement, its preparation not counted (default: 0.1, with --full 1)",
    )
    parser.add_argument(
        "--repeats",
        type=_at_least(1, int),
        metavar="N",
        help="rounds to take the median of (default: 3, with --full 5)",
    )
    parser.add_argument(
        "--full", action="store_true", help="the large numbers: takes minutes and gigabytes"
    )
    parser.add_argument(
        "--directory",
        type=_directory,
        default=_directory(tempfile.gettempdir()),
        metavar="DIR",
        help="where what is stored in files is stored, in temporary directories (default: the "
        "system's place for them)",
    )
    parser.add_argument(
        "--redis-url",
        metavar="URL",
        help="a Redis server to measure with, whose database is empty, and is emptied (default: "
        "a server of its own for each measurement)",
    )
    parser.add_argument(
        "--json", type=_output, metavar="FILE", help="write all measurements to a file"
    )
    parser.add_argument(
        "--list", action="store_true", help="list scenarios, backends and peers, and end"
    )
    return parser


def parse_options(arguments: Sequence[str] | None) -> Options:
    """Read a command line.

    Args:
        arguments: The command line without the program; None takes it from `sys.argv`.

    Raises:
        SystemExit: With 2 after a line about a bad option, with 0 after `--help`.
    """
    given = _make_parser().parse_args(arguments)
    seconds = given.seconds or (1.0 if given.full else 0.1)
    brief = not (given.full or given.peers or given.backends or given.scenarios)
    return Options(
        backends=given.backends,
        scenarios=given.scenarios,
        peers=given.peers,
        scale=Scale(seconds, given.tasks, given.tokens, given.full, brief=brief),
        rounds=given.repeats or (5 if given.full else 3),
        directory=given.directory,
        redis_url=given.redis_url,
        json=given.json,
        list=given.list,
    )
