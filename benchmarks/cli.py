"""What `python -m benchmarks` does with its command line."""

import sys
from collections.abc import Sequence

from benchmarks.commands.comparing import compare
from benchmarks.commands.listing import print_list
from benchmarks.commands.reporting import make_page
from benchmarks.commands.running import measure
from benchmarks.exits import BAD_OPTIONS, DONE, FAILED, INTERRUPTED
from benchmarks.files import FileError
from benchmarks.interpreter import PreparationError
from benchmarks.options import (
    PROGRAM,
    CompareOptions,
    ListOptions,
    Options,
    ReportOptions,
    parse_options,
)
from benchmarks.page import ReportError
from benchmarks.plan import SelectionError
from benchmarks.server import ServerError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks, or do something with what they found.

    Args:
        arguments: The command line without the program; None takes it from `sys.argv`.

    Returns:
        The exit code, one of `exits`.
    """
    options = parse_options(sys.argv[1:] if arguments is None else arguments)
    try:
        return _do(options)
    except (SelectionError, FileError) as error:
        _complain(error)
        return BAD_OPTIONS
    except (PreparationError, ServerError, ReportError) as error:
        _complain(error)
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted before anything was measured")
        return INTERRUPTED


def _do(options: Options) -> int:
    match options:
        case ListOptions():
            print_list()
            return DONE
        case CompareOptions():
            return compare(options)
        case ReportOptions():
            make_page(options)
            return DONE
        case _:
            return measure(options)


def _complain(message: object) -> None:
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)
