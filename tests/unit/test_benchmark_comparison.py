"""`python -m benchmarks compare`: a change of speed told from noise."""

import random
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, product
from math import comb, log
from pathlib import Path

import pytest

from benchmarks.commands.comparing import print_changes
from benchmarks.comparison import (
    Interval,
    Verdict,
    changes_between,
    changes_within,
    paired,
    rounds_needed,
    unpaired,
)
from benchmarks.files import Report, read_report, write_report
from benchmarks.results import Case, Latency, Measurement, Point
from benchmarks.subject import Role, Subject
from benchmarks.summary import summarize

CASE = Case("change", tasks=1, tokens=10, seconds=0.1)
SUBJECTS = {
    "ours": Subject(name="ours", role=Role.OURS, summary=""),
    "floor": Subject(name="floor", role=Role.FLOOR, summary="", against=("ours",)),
}


def measurement(subject: str, number: int, rate: float, *, base: bool = False) -> Measurement:
    """Make a measurement of some rate, of one second."""
    point = Point(round(rate), 1.0, 0.5, Latency(1e-6, 2e-6, 3e-6, 10))
    return Measurement(CASE, subject, number, (point,), base)


def report(measurements: list[Measurement]) -> Report:
    """Make a report of measurements."""
    rows = summarize(measurements, SUBJECTS)
    return Report({}, {}, complete=True, measurements=measurements, failures=[], rows=rows)


def run(speed: float, seed: int, rounds: int = 12, mood: float = 1.0) -> Report:
    """Make a run in which ours has some speed, and the machine moods that move everything."""
    chance = random.Random(seed)  # noqa: S311
    measurements = []
    for number in range(1, rounds + 1):
        now = mood * chance.uniform(0.6, 1.4)
        for subject, rate in (("ours", 2e6 * speed), ("floor", 8e6)):
            noise = chance.gauss(1, 0.01)
            measurements.append(measurement(subject, number, rate * now * noise))
    return report(measurements)


@pytest.mark.parametrize(
    ("speed", "verdict"),
    [(0.8, Verdict.SLOWER), (1.0, Verdict.SAME), (1.25, Verdict.FASTER)],
)
def test_two_runs_are_told_apart_by_what_ran_beside_them(speed, verdict):
    """A machine that is half as fast in the second run does not count."""
    [change] = changes_between(run(1.0, seed=1), run(speed, seed=2, mood=0.5), 0.99)
    assert change.beside == "floor"
    assert change.interval is not None
    assert change.interval.low < speed < change.interval.high
    assert change.interval.verdict(threshold=0.05) is verdict


def test_without_anything_beside_it_the_mood_of_the_machine_counts():
    """The result says so."""
    only = [
        report([one for one in of.measurements if one.subject == "ours"])
        for of in (run(1.0, seed=1), run(1.0, seed=2, mood=0.2))
    ]
    [change] = changes_between(*only, 0.99)
    assert change.beside == ""
    assert change.interval is not None
    assert change.interval.verdict(threshold=0.05) is Verdict.SLOWER


@pytest.mark.parametrize(("speed", "verdict"), [(0.8, Verdict.SLOWER), (1.0, Verdict.SAME)])
def test_a_run_with_its_base_is_compared_in_pairs(speed, verdict):
    """Of one round, in which the two followed each other."""
    chance = random.Random(3)  # noqa: S311
    measurements = []
    for number in range(1, 13):
        mood = chance.uniform(0.5, 2)
        for base, rate in ((True, 1e6), (False, 1e6 * speed)):
            noise = chance.gauss(1, 0.02)
            measurements.append(measurement("ours", number, rate * mood * noise, base=base))
    [change] = changes_within(report(measurements), 0.99)
    assert change.rounds == 12
    assert change.interval is not None
    assert change.interval.verdict(threshold=0.05) is verdict


def test_the_base_is_in_no_row():
    """The table is of this checkout."""
    rows = report([measurement("ours", 1, 100), measurement("ours", 1, 900, base=True)]).rows
    assert [row.rate for row in rows] == [100]


def test_a_wild_round_hardly_moves_the_estimate():
    """A process that was stopped for a while; with twenty rounds it widens nothing either."""
    for rounds in (12, 20):
        interval = paired([*(log(0.8 + i / 1000) for i in range(rounds - 1)), log(30)], 0.99)
        assert interval is not None
        assert 0.8 <= interval.low < interval.value < 0.82
    assert interval.high < 0.82


def covered(sizes: int, pairs: bool) -> float:
    """Return how many of all equally likely orders give an interval that holds the truth."""
    hits = total = 0
    if pairs:
        for signs in product((-1, 1), repeat=sizes):
            interval = paired([rank * sign for rank, sign in enumerate(signs, 1)], 0.9)
            assert interval is not None
            hits += interval.low <= 1 <= interval.high
            total += 1
    else:
        for chosen in combinations(range(2 * sizes), sizes):
            others = [place for place in range(2 * sizes) if place not in chosen]
            interval = unpaired(chosen, others, 0.9)
            assert interval is not None
            hits += interval.low <= 1 <= interval.high
            total += 1
        assert total == comb(2 * sizes, sizes)
    return hits / total


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("rounds", [5, 6])
def test_an_interval_holds_the_truth_as_often_as_it_says(pairs, rounds):
    """Counted over every order that noise can give: at least 90%, and not much more."""
    assert 0.9 <= covered(rounds, pairs) <= 0.95


def test_too_few_rounds_give_no_interval():
    """As many as it takes are told."""
    needed = rounds_needed(0.99, pairs=True)
    assert needed == 8  # all of them on one side: 2 of 256 orders
    assert paired([0.1] * (needed - 1), 0.99) is None
    assert paired([0.1] * needed, 0.99) is not None
    needed = rounds_needed(0.99, pairs=False)
    assert needed == 5  # 2 of 252 orders
    assert unpaired([0.1] * 4, [0.2] * 4, 0.99) is None
    assert unpaired([0.1] * 5, [0.2] * 5, 0.99) is not None


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (Interval(0.8, 0.7, 0.9), Verdict.SLOWER),
        (Interval(0.9, 0.7, 1.1), Verdict.UNTOLD),
        (Interval(0.97, 0.96, 0.98), Verdict.SAME),
        (Interval(1.0, 0.9, 1.1), Verdict.UNTOLD),
        (Interval(1.2, 1.1, 1.3), Verdict.FASTER),
    ],
)
def test_what_does_not_matter_is_the_same(interval, verdict):
    """A verdict needs an interval that leaves no other."""
    assert interval.verdict(threshold=0.05) is verdict


def test_exit_code_is_1_if_anything_is_slower(capsys):
    """A script can go by it."""
    slower = changes_between(run(1.0, seed=1), run(0.8, seed=2), 0.99)
    same = changes_between(run(1.0, seed=1), run(1.0, seed=2), 0.99)
    assert print_changes(same, 0.99, 0.05) == 0
    assert "1 same." in capsys.readouterr().out
    assert print_changes(slower, 0.99, 0.05) == 1
    assert "1 slower." in capsys.readouterr().out


def test_what_is_too_little_says_what_would_be_enough(capsys):
    """Of rounds, and of what is beside it."""
    few = changes_between(run(1.0, seed=1, rounds=2), run(1.0, seed=2, rounds=2), 0.99)
    assert print_changes(few, 0.99, 0.05) == 0
    assert "more --repeats (at least 5)" in " ".join(capsys.readouterr().out.split())


def test_a_file_is_read_back_as_it_was_written(tmp_path: Path):
    """Everything of it."""
    written = run(1.0, seed=1, rounds=3)
    path = tmp_path / "report.json"
    write_report(written, path)
    assert read_report(path) == written


def test_two_checkouts_are_measured_in_turn(tmp_path: Path):
    """The other one's statemgr is what is measured there, with our scenarios.

    It fails here: that is told of it, and nothing of pairs.
    """
    root = Path(__file__).resolve().parents[2]
    slowed = tmp_path / "slowed"
    (slowed / "statemgr").mkdir(parents=True)
    # Found first, it holds the true package up, and becomes it.
    (slowed / "statemgr" / "__init__.py").write_text(
        "import importlib.util, sys\n"
        f"path = {str(root / 'statemgr')!r}\n"
        "spec = importlib.util.spec_from_file_location(\n"
        "    'statemgr', path + '/__init__.py', submodule_search_locations=[path])\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "sys.modules['statemgr'] = module\n"
        "spec.loader.exec_module(module)\n"
        "module.StateToken.serialize = None\n"
    )
    file = tmp_path / "report.json"
    command = [sys.executable, "-m", "benchmarks", "--base", str(slowed), "--json", str(file)]
    command += ["--scenarios", "serialization", "--seconds", "0.005", "--repeats", "2"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    found = read_report(file)
    assert {failure.base for failure in found.failures} == {True}
    assert {failure.subject for failure in found.failures} == {"token"}
    assert [measured.base for measured in found.measurements] == [False] * 4
    assert "failed 2x: serialization, 1 token, token (base): " in done.stdout
    assert "The ratio is that of the rates" not in done.stdout


def test_the_order_of_a_pair_alternates():
    """What the first of two leaves warm must not count for one side only."""
    from benchmarks.discovery import find_scenarios
    from benchmarks.plan import Step

    step = Step(find_scenarios()["change"], CASE, tuple(SUBJECTS.values()), with_base=True)
    turns = {
        number: [(subject.name, base) for subject, base in step.turns(number)] for number in (1, 2)
    }
    assert turns[1] == [("ours", True), ("ours", False), ("floor", False)]
    assert turns[2] == [("ours", False), ("ours", True), ("floor", False)]
    assert len(step) == 3
    assert len(replace(step, with_base=False)) == 2
