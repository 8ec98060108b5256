"""The exit codes of `python -m benchmarks`."""

DONE = 0
FAILED = 1  # a measurement gave no result, or a comparison found something slower
BAD_OPTIONS = 2
INTERRUPTED = 130  # by Ctrl-C
