"""The command line: `python -m chaos run|explore|cancels|mutants [options]`.

Each of them is a module with `add_arguments(parser)` and `main(arguments) -> int`. Only the one
that is asked for is imported.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

PROGRAM = "python -m chaos"

COMMANDS = {
    "run": ("chaos.run", "several processes under faults, and what became of what they did"),
    "explore": ("chaos.explorer", "the protocol's steps in every order"),
    "cancels": ("chaos.cancels", "a cancel at every await"),
    "mutants": ("chaos.mutants", "seeded faults of the backends, and what finds them"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    line = sys.argv[1:] if arguments is None else list(arguments)
    if not line or line[0] not in COMMANDS:
        print(f"usage: {PROGRAM} COMMAND [options]; {PROGRAM} COMMAND --help\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:<8} {summary}")
        return 0 if line[:1] in (["-h"], ["--help"]) else 2
    module, summary = COMMANDS[line[0]]
    command = importlib.import_module(module)
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {line[0]}", description=summary)
    command.add_arguments(parser)
    status: int = command.main(parser.parse_args(line[1:]))
    return status


if __name__ == "__main__":
    sys.exit(main())
