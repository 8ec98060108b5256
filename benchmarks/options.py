"""The command line: its commands, their options and defaults, and what is wrong with bad ones."""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeVar

from benchmarks.scenario import Scale

PROGRAM = "python -m benchmarks"

RUN, LIST, COMPARE, REPORT = "run", "list", "compare", "report"

CONFIDENCE, THRESHOLD = 0.99, 0.05
"""How `compare` judges unless it is told otherwise."""

SMALLEST = 100
"""Bytes of the smallest state of a given size: what its fields take, and some content."""

N = TypeVar("N", int, float)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What to measure, defaults filled in.

    Attributes:
        backends: Names of backends or variants; empty for the usual ones.
        scenarios: Names of scenarios; empty for all.
        peers: Whether to measure the peers and variants that are not always measured.
        scale: How much to do.
        rounds: How often to measure each case and subject.
        time_limit: Seconds after which nothing more is begun; None for no limit.
        directory: Where temporary directories are made.
        redis_url: A Redis server of the user's; None has one started for each measurement.
        base: Another checkout, whose statemgr is measured in turn with this one; or None.
        json: The file to write everything to.
    """

    backends: tuple[str, ...]
    scenarios: tuple[str, ...]
    peers: bool
    scale: Scale
    rounds: int
    time_limit: float | None
    directory: Path
    redis_url: str | None
    base: Path | None
    json: Path | None


@dataclass(frozen=True, slots=True)
class ListOptions:
    """That the scenarios and subjects be listed."""


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What to compare.

    Attributes:
        before: What was measured first; None if `after` holds its base too.
        after: What was measured then.
        confidence: Of the intervals, between 0 and 1.
        threshold: The least change that matters: 0.05 for one of 5%.
    """

    before: Path | None
    after: Path
    confidence: float
    threshold: float


@dataclass(frozen=True, slots=True)
class ReportOptions:
    """What to make a page of, and where to write it."""

    file: Path
    output: Path


Options = RunOptions | ListOptions | CompareOptions | ReportOptions


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with one line; `--help` has the rest."""
        self.exit(2, f"{PROGRAM}: error: {message}\n")


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


def _share(text: str) -> float:
    value = _at_least(0.0, float)(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(least: int) -> Callable[[str], tuple[int, ...]]:
    parse = _at_least(least, int)
    return lambda text: tuple(dict.fromkeys(parse(part) for part in text.split(",")))


def _sizes(text: str) -> tuple[int, ...]:
    sizes = _numbers(0)(text)
    if any(0 < size < SMALLEST for size in sizes):
        raise argparse.ArgumentTypeError(f"not sizes from {SMALLEST} on, or 0")
    return sizes


def _output(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return path


def _input(text: str) -> Path:
    path = Path(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"cannot read {text!r}")
    return path


def _directory(text: str) -> Path:
    path = Path(text)
    if not path.is_dir() or not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write to {text!r}")
    return path.resolve()


def _checkout(text: str) -> Path:
    path = Path(text)
    if not (path / "statemgr" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text!r} is no checkout: it has no statemgr/__init__.py")
    return path.resolve()


def _make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        description="Measure statemgr beside what a user would pick instead, and print ratios. "
        "Each measurement is a process of its own.",
        epilog=f"Without a command it is {RUN}: `{PROGRAM} --peers` runs with the peers, and "
        f"`{PROGRAM} {RUN} --help` lists what can be chosen. "
        "benchmarks/README.md tells how to read the table, and how to add to it.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_run(commands.add_parser(RUN, help="measure, and print a table (what it does by itself)"))
    commands.add_parser(LIST, help="list scenarios, backends and peers")
    _add_compare(
        commands.add_parser(
            COMPARE,
            help="tell what a change made faster or slower, from what was measured",
            description="Print how fast each backend was in a second file of --json, as a multiple "
            "of the first, with a confidence interval. If the second was made with --base, "
            "one file will do. The exit code is 1 if anything is slower.",
        )
    )
    _add_report(
        commands.add_parser(
            REPORT,
            help="make an HTML page with plots of what was measured",
            description="Write one HTML file with tables and plots, which needs nothing else.",
        )
    )
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--backends",
        type=_names,
        default=(),
        metavar="NAMES",
        help="comma-separated backends, with all their variants, or single variants such as "
        f"memory/no-rollback (default: all but the variants that `{LIST}` calls optional)",
    )
    what.add_argument(
        "--scenarios",
        type=_names,
        default=(),
        metavar="NAMES",
        help="comma-separated scenarios (default: all but the optional ones, which --peers and "
        "--full bring)",
    )
    what.add_argument(
        "--peers",
        action="store_true",
        help="measure the peers and the optional variants too; if a peer is not installed, "
        "everything is measured in .venv-bench, which is made once",
    )
    what.add_argument(
        "--base",
        type=_checkout,
        metavar="DIR",
        help="another checkout, such as `git worktree add DIR main` makes: its statemgr is "
        "measured in turn with this one, and the two are compared",
    )
    much = parser.add_argument_group("how much")
    much.add_argument(
        "--tasks",
        type=_numbers(1),
        metavar="NUMBERS",
        help="comma-separated numbers of tasks side by side; contended and hot take the largest "
        "(default: each scenario's own, 1 and 64 for changes)",
    )
    much.add_argument(
        "--processes",
        type=_numbers(1),
        metavar="NUMBERS",
        help="comma-separated numbers of processes, for scenarios that have several",
    )
    much.add_argument(
        "--tokens",
        type=_numbers(1),
        metavar="NUMBERS",
        help="comma-separated numbers of tokens (default: each scenario's own)",
    )
    much.add_argument(
        "--size",
        dest="sizes",
        type=_sizes,
        metavar="NUMBERS",
        help=f"comma-separated sizes of a serialized state in bytes, from {SMALLEST} on; 0 is the "
        "reference state of about 300 (default)",
    )
    much.add_argument(
        "--seconds",
        type=_at_least(0.001, float),
        metavar="S",
        help="time for one measurement, its preparation not counted (default: 0.1, with --full "
        "0.3)",
    )
    much.add_argument(
        "--repeats",
        type=_at_least(1, int),
        metavar="N",
        help="rounds to take the median of (default: 3); if no scenario or backend is named, those "
        "that take long are in the first one only",
    )
    much.add_argument(
        "--time-limit",
        type=_at_least(0.001, float),
        metavar="S",
        help="seconds after which nothing more is begun, and what was measured is shown; a round "
        "goes through everything before the next begins (default: none)",
    )
    much.add_argument(
        "--full",
        action="store_true",
        help="the large numbers, the largest only if a scenario or a backend is named: takes "
        "minutes and gigabytes",
    )
    where = parser.add_argument_group("where")
    where.add_argument(
        "--directory",
        type=_directory,
        default=_directory(tempfile.gettempdir()),
        metavar="DIR",
        help="where what is stored in files is stored, in temporary directories (default: the "
        "system's place for them)",
    )
    where.add_argument(
        "--redis-url",
        metavar="URL",
        help="a Redis server to measure with, whose database is empty, and is emptied (default: "
        "a server of its own for each measurement)",
    )
    where.add_argument(
        "--json",
        type=_output,
        metavar="FILE",
        help=f"write all measurements to a file, for {COMPARE} and {REPORT}",
    )


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", type=_input, nargs="+", metavar="FILE", help="before, and after")
    parser.add_argument(
        "--confidence",
        type=_share,
        default=CONFIDENCE,
        metavar="C",
        help=f"of the intervals (default: {CONFIDENCE:g})",
    )
    parser.add_argument(
        "--threshold",
        type=_share,
        default=THRESHOLD,
        metavar="T",
        help=f"the least change that matters (default: {THRESHOLD:g}, which is {THRESHOLD:.0%}%)",
    )


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=_input, metavar="FILE", help="what --json has written")
    parser.add_argument(
        "--output",
        type=_output,
        metavar="FILE",
        help="the page (default: the file's name with .html)",
    )


def parse_options(arguments: Sequence[str]) -> Options:
    """Read a command line.

    Args:
        arguments: The command line without the program. One that begins with no command is `run`.

    Raises:
        SystemExit: With 2 after a line about a bad option, with 0 after `--help`.
    """
    named = arguments and (arguments[0] in ("-h", "--help") or not arguments[0].startswith("-"))
    parser = _make_parser()
    given = parser.parse_args(arguments if named else [RUN, *arguments])
    match given.command:
        case "list":
            return ListOptions()
        case "compare":
            if len(given.files) > 2:
                parser.error("compare takes one file or two")
            before = given.files[0] if len(given.files) == 2 else None
            return CompareOptions(before, given.files[-1], given.confidence, given.threshold)
        case "report":
            return ReportOptions(given.file, given.output or given.file.with_suffix(".html"))
        case _:
            return _run_options(given)


def _run_options(given: argparse.Namespace) -> RunOptions:
    named = bool(given.backends or given.scenarios)
    scale = Scale(
        seconds=given.seconds or (0.3 if given.full else 0.1),
        tasks=given.tasks,
        tokens=given.tokens,
        sizes=given.sizes,
        processes=given.processes,
        full=given.full,
        named=named,
        brief=not (named or given.full or given.peers),
    )
    return RunOptions(
        backends=given.backends,
        scenarios=given.scenarios,
        peers=given.peers,
        scale=scale,
        rounds=given.repeats or 3,
        time_limit=given.time_limit,
        directory=given.directory,
        redis_url=given.redis_url,
        base=given.base,
        json=given.json,
    )
