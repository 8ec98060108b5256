"""Where the benchmarks stand."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository root, where child processes run."""
