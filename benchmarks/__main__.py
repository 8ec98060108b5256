"""`python -m benchmarks`; `--help` tells more."""

import importlib.util
import sys


def _main() -> int:
    if importlib.util.find_spec("rich") is None:
        message = "the table needs rich: pip install 'statemgr[report]'"
        print(f"python -m benchmarks: error: {message}", file=sys.stderr)
        return 2
    from benchmarks.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(_main())
