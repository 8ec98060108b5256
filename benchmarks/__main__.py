"""`python -m benchmarks`; `--help` tells more."""

import importlib.util
import os
import sys


def _main() -> int:
    if importlib.util.find_spec("rich") is None:
        message = "the table needs rich: pip install '.[report]' in the clone"
        print(f"python -m benchmarks: error: {message}", file=sys.stderr)
        return 2
    from benchmarks.cli import main

    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(_main())
