"""`python -m chaos run`: several processes under faults, and what became of what they did."""

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.environment import describe_other
from benchmarks.interpreter import PreparationError, interpreter_for
from chaos.analysis import Figures
from chaos.harness import EXPIRATION, Run, Setting
from chaos.page import write_page
from chaos.report import print_report, write_json, write_markdown
from chaos.subjects import SUBJECTS, Subject, find_subject

DONE, FOUND, BAD_OPTIONS, INTERRUPTED = 0, 1, 2, 130
DEFAULT = ("disk", "redis")
_LINES = 10.0  # seconds from one line of progress to the next, where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--backend",
        action="append",
        metavar="NAME",
        help=f"what to run on; may be given several times. One of {', '.join(SUBJECTS)}. "
        f"Unless given: {' and '.join(DEFAULT)}",
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_positive, help="for how long, all backends together")
    length.add_argument("--seconds", type=_positive, help="the same in seconds; 60 unless given")
    parser.add_argument("--processes", type=_count, default=6, help="how many at once (6)")
    parser.add_argument("--tokens", type=_count, default=20, help="how many they work on (20)")
    parser.add_argument("--seed", type=int, help="of the plan of faults; drawn unless given")
    parser.add_argument(
        "--lock-expiration", type=_positive, default=EXPIRATION, help=f"in seconds ({EXPIRATION})"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the report")
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIRECTORY",
        help="keep the histories there",
    )


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e7:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1000:
        raise ValueError(text)
    return value


def main(arguments: argparse.Namespace) -> int:
    """Run; return 0, 1 if something was found in ours, 2 for bad options, 130 after Ctrl-C."""
    names = arguments.backend or list(DEFAULT)
    try:
        subjects = [find_subject(name) for name in names]
        needed = {module for subject in subjects for module in subject.requires}
        python = interpreter_for(needed, lambda text: print(text, file=sys.stderr, flush=True))
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return BAD_OPTIONS
    except PreparationError as error:
        print(f"error: {error}", file=sys.stderr)
        return FOUND
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    total = 60 * arguments.minutes if arguments.minutes else arguments.seconds or 60.0
    print(f"seed {seed}", flush=True)
    with _directory(arguments.keep) as directory:
        setting = Setting(
            seconds=total / len(subjects),
            processes=arguments.processes,
            tokens=arguments.tokens,
            seed=seed,
            directory=directory,
            expiration=arguments.lock_expiration,
        )
        figures, was_interrupted = asyncio.run(_run_all(subjects, names, python, setting))
        environment = describe_other(python)
        print_report(figures, setting, environment)
        if arguments.json:
            write_json(arguments.json, figures, setting, environment)
        if arguments.html:
            write_page(arguments.html, figures, setting, environment)
        if arguments.markdown:
            write_markdown(arguments.markdown, figures, setting, environment)
        found = any(one.is_wrong for one in figures if one.is_ours)
        if found and arguments.keep is None:
            kept = shutil.copytree(directory, tempfile.mkdtemp(prefix="chaos-"), dirs_exist_ok=True)
            print(f"the histories are kept in {kept}")
    if was_interrupted:
        return INTERRUPTED
    return FOUND if found else DONE


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Make a directory for the histories."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=keep))
        return
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as name:
        yield Path(name)


async def _run_all(
    subjects: Sequence[Subject], names: Sequence[str], python: str, setting: Setting
) -> tuple[list[Figures], bool]:
    """Run on each; Ctrl-C ends it, and what there is by then is told."""
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted.set)
    figures = []
    with _progress() as tell:
        for subject, name in zip(subjects, names, strict=True):
            if not interrupted.is_set():
                run = Run(subject, name, python, setting, tell)
                figures.append(await run.run(interrupted))
    return figures, interrupted.is_set()


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Give what shows a line: always the same on a terminal, else one now and then."""
    is_terminal = sys.stderr.isatty()
    told = -_LINES

    def tell(text: str) -> None:
        nonlocal told
        if is_terminal:
            print(f"\r\x1b[2K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - told >= _LINES:
            told = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    try:
        yield tell
    finally:
        if is_terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
