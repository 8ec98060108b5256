"""The scenarios of `python -m benchmarks` that grow along an axis, each in its smallest form."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from benchmarks.clients import Job
from benchmarks.discovery import find_scenarios, find_subjects
from benchmarks.plan import make_plan, rounds_of
from benchmarks.results import AXES
from benchmarks.scenario import Scale
from benchmarks.scenarios import by_tokens, zipf
from benchmarks.states import Cart, cart
from statemgr import StateToken

ROOT = Path(__file__).resolve().parents[2]

GROWING = {
    "by-processes": "processes",
    "by-size": "size",
    "by-tasks": "tasks",
    "by-tokens": "tokens",
    "footprint": "tokens",
}
"""Scenarios, and the axis of each."""

SCENARIOS = {**GROWING, "zipf": ""}

TINY = ["--seconds", "0.005", "--repeats", "1"]


def run(file, *options):
    """Run the program to its end; return what it printed and its JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "run", *TINY, *options, "--json", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, json.loads(file.read_text())


@pytest.fixture(scope="module")
def in_memory(tmp_path_factory):
    """A run of all of them on one backend in memory, with two numbers of tokens."""
    axes = ["--tasks", "4", "--tokens", "20,40", "--size", "1000"]
    what = ["--backends", "memory/no-rollback", "--scenarios", ",".join(SCENARIOS)]
    return run(tmp_path_factory.mktemp("memory") / "report.json", *axes, *what)


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What tokens take on disk, in every variant, and on a server."""
    what = ["--backends", "disk,redis/through", "--scenarios", "footprint", "--tokens", "8"]
    return run(tmp_path_factory.mktemp("kept") / "report.json", *what)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A run of two processes and of large states, on what processes can share."""
    what = ["--backends", "disk/fsync", "--scenarios", "by-processes,by-size"]
    axes = ["--tokens", "8", "--processes", "2", "--size", "100000"]
    return run(tmp_path_factory.mktemp("shared") / "report.json", *what, *axes)


def rows_of(report, scenario):
    return [row for row in report["rows"] if row["case"]["scenario"] == scenario]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("keeping", [{}, {"in_files": True}, {"on_server": True}])
@pytest.mark.parametrize(("name", "axis"), GROWING.items())
def test_cases_differ_in_one_axis_only(name, axis, keeping, full):
    """So that a plot along it shows nothing else; more processes have more tasks, as many each."""
    cases = find_scenarios()[name].cases(Scale(0.1, full=full, named=True, **keeping))
    values = {other: {getattr(case, other) for case in cases} for other in AXES}
    moving = {other for other in AXES if len(values[other]) > 1}
    assert moving - ({"tasks"} if axis == "processes" else set()) == {axis}
    assert len({getattr(case, axis) for case in cases}) == len(cases)
    assert {case.tasks % case.processes for case in cases} == {0}


def test_the_usual_run_does_without_them():
    """They run if they are named, or with `--peers` or `--full`."""
    assert {name for name, one in find_scenarios().items() if one.optional} >= set(SCENARIOS)


def test_a_million_tokens_are_for_the_full_run_or_for_who_asks():
    """In files and on a server 100,000 are stored if it was named, and more if somebody says so."""
    cases = find_scenarios()["by-tokens"].cases

    def most(**scale):
        return max(case.tokens for case in cases(Scale(0.1, **scale)))

    assert most(full=True) == 1_000_000
    assert most(full=True, in_files=True) == most(named=True, on_server=True) == 10_000
    assert most(full=True, in_files=True, named=True) == 100_000
    assert most(full=True, on_server=True, named=True) == 100_000
    assert most(on_server=True, tokens=(1_000_000,)) == 1_000_000


def test_states_of_all_sizes_are_bounded_together():
    """What exists of them at once is no more than some 64 MB, when serialized no more than 8."""
    cases = find_scenarios()["by-size"].cases(Scale(0.1))
    assert max(case.size * case.tokens for case in cases) == 8_000_000
    token = StateToken("user-42", Cart)
    for case in cases[:-1]:
        assert 0.8 * case.size <= len(token.serialize(cart(case.size))) <= case.size


def test_each_is_measured_on_ours_and_on_its_floor(in_memory):
    """With what was asked for; what is not shared has no processes side by side."""
    _, report = in_memory
    rows = {
        (row["case"]["scenario"], row["case"]["tokens"], row["subject"]) for row in report["rows"]
    }
    names = set(SCENARIOS) - {"by-processes"}
    assert rows == set(product(names, (20, 40), ("memory/no-rollback", "lock_dict")))


def test_reads_and_changes_of_a_size_share_a_process(in_memory):
    """Each is a part of one measurement."""
    _, report = in_memory
    measured = [one for one in report["measurements"] if one["case"]["scenario"] == "by-size"]
    assert {tuple(point["part"] for point in one["points"]) for one in measured} == {
        ("read", "change")
    }


def test_a_token_in_memory_is_what_the_process_has_grown_by(in_memory):
    """The bytes of each stand below the table."""
    printed, report = in_memory
    rows = [row for row in rows_of(report, "footprint") if row["case"]["tokens"] == 40]
    assert {tuple(row["extra"]) for row in rows} == {("bytes_per_token",)}
    assert "bytes for each of 40 tokens" in printed


def test_a_token_elsewhere_tells_what_it_takes_there(kept):
    """In files their number and what is allocated too; besides, what the process keeps."""
    _, report = kept
    facts = {row["subject"]: row["extra"] for row in rows_of(report, "footprint")}
    on_server = {"bytes_per_token", "process_bytes_per_token"}
    in_files = {*on_server, "allocated_per_token", "files_per_token"}
    for name in ("disk", "disk/fsync", "disk/exclusive", "disk/debounce", "write_rename"):
        assert facts[name].keys() == in_files
        assert facts[name]["files_per_token"] == (1 if name == "write_rename" else 2)
        assert facts[name]["bytes_per_token"] > 200
    assert facts["redis/through"].keys() == on_server
    assert facts["redis/through"]["bytes_per_token"] > 200


def test_processes_share_out_the_tasks(shared):
    """Each has as many; the floors, which know of no other process, are left out."""
    _, report = shared
    rows = rows_of(report, "by-processes")
    assert {row["subject"] for row in rows} == {"disk/fsync"}
    assert {(row["case"]["processes"], row["case"]["tasks"]) for row in rows} == {(2, 16)}


def test_large_states_are_read_and_changed_by_the_floor_too(shared):
    """What it reads is as long as what was written."""
    _, report = shared
    rows = rows_of(report, "by-size")
    assert {row["subject"] for row in rows} == {"disk/fsync", "write_rename/fsync"}


def test_zipf_runs_on_what_is_exclusive_only():
    """Elsewhere two tasks that want the same ident would lose a change."""
    runs_on = find_scenarios()["zipf"].runs_on
    assert {name for name, one in find_subjects().items() if one.open_store and runs_on(one)} == {
        "lock_dict",
        "memory",
        "memory/no-rollback",
        "reflex_memory",
    }
    assert not any(runs_on(one) for one in find_subjects().values() if not one.exclusive)


def test_zipf_asks_for_the_first_ident_most():
    """By the law the first of 1,000 gets 13% of the draws, the second half as many; repeatably."""
    drawn = zipf.drawn(1_000)
    counts = Counter(drawn)
    first, second = counts[0] / len(drawn), counts[1] / len(drawn)
    assert first == pytest.approx(0.129, rel=0.05)
    assert second == pytest.approx(first / 2**0.99, rel=0.05)
    assert drawn == zipf.drawn(1_000)


def test_tokens_to_change_lie_scattered_among_all():
    """None is there twice, and each tenth of all tokens has its part of them."""
    chosen = by_tokens.scattered(100_000, most=10_000)
    assert len(set(chosen)) == len(chosen) == 10_000
    tenths = Counter(number // 10_000 for number in chosen)
    assert len(tenths) == 10
    assert min(tenths.values()) > 900
    assert sorted(by_tokens.scattered(1_000, most=10_000)) == list(range(1_000))


def test_tasks_of_all_processes_begin_at_tokens_of_their_own():
    """Where there are fewer tokens than tasks, all tokens are begun with."""
    job = Job("module", "subject", "place", tokens=1_000, tasks=8, stride=62)
    starts = job.starts() + replace(job, first=8).starts()
    assert len(set(starts)) == 16
    assert replace(job, tokens=3, tasks=4, first=4, stride=1).starts() == [1, 2, 0, 1]


def test_what_takes_long_is_in_the_first_round_of_a_run_of_everything():
    """And not on optional variants; who names it gets all rounds, and the variant."""
    scenarios = [find_scenarios()[name] for name in ("by-size", "read")]
    subjects = [find_subjects()[name] for name in ("memory", "disk", "disk/fsync")]

    def rounds(**scale):
        plan = make_plan(scenarios, subjects, Scale(0.1, **scale))
        return {
            (number, step.scenario.name, subject.name)
            for number, step in rounds_of(plan, 2)
            for subject in step.subjects
        }

    every = set(product((1, 2), ("by-size", "read"), ("memory", "disk", "disk/fsync")))
    left_out = {(2, "by-size", "memory"), (2, "by-size", "disk")}
    left_out |= {(1, "by-size", "disk/fsync"), (2, "by-size", "disk/fsync")}
    assert rounds(full=True) == every - left_out
    assert rounds(full=True, named=True) == every
