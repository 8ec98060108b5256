"""The measured process: one case on one subject, one JSON line on standard output."""

import json
import sys
from dataclasses import asdict
from typing import Any

from benchmarks.discovery import load_scenario, load_subject
from benchmarks.results import Case


def measure(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Do a job as `runner.measure_in_child` describes it, and return its points."""
    scenario = load_scenario(job["scenario_module"])
    subject = load_subject(job["subject_module"], job["subject"])
    return [asdict(point) for point in scenario.measure(subject, Case(**job["case"]))]


def main() -> None:
    """Do the job given as the only argument, in JSON."""
    points = measure(json.loads(sys.argv[1]))
    print(json.dumps({"points": points}))


if __name__ == "__main__":
    main()
