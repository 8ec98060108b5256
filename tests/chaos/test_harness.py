"""The harness: its plan, its histories, and its command line."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.paths import ROOT
from chaos.history import Kind, Outcome, Recorder, read_history
from chaos.plan import EVERY, FaultKind, make_plan
from chaos.subjects import SUBJECTS


def test_plan_follows_from_its_seed() -> None:
    """The same seed gives the same plan; another seed, or another round, gives another one."""
    plans = [
        make_plan(seed, number, FaultKind, seconds=60, processes=6, expiration=0.4)
        for seed, number in ((1, 0), (1, 0), (2, 0), (1, 1))
    ]
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]
    assert plans[0] != plans[3]


@pytest.mark.parametrize("seconds", [2.0, 300.0])
def test_plan_has_some_of_each_fault(seconds: float) -> None:
    """In its time, and as often as that allows."""
    plan = make_plan(7, 0, FaultKind, seconds=seconds, processes=3, expiration=0.4)
    for kind in FaultKind:
        of_kind = [fault for fault in plan if fault.kind is kind]
        assert len(of_kind) == max(1, round(seconds / EVERY[kind])), kind
        assert all(0 <= fault.at <= seconds for fault in of_kind)
        assert all(set(fault.workers) <= set(range(3)) for fault in of_kind)
    assert plan == sorted(plan, key=lambda fault: (fault.at, fault.kind))


def test_history_of_a_killed_process(tmp_path: Path) -> None:
    """What was written counts; a line that was cut off does not."""
    path = tmp_path / "history"
    recorder = Recorder(path)
    first = recorder.invoke(Kind.ADD, 3)
    recorder.body(first, 17, 4, 5)
    recorder.end(first, Outcome.OK, 4)
    second = recorder.invoke(Kind.CHANGE, 5, 8, 7)
    recorder.body(second, 18, 7, None)
    recorder.end(second, Outcome.FAILED, None, "LockExpiredError")
    recorder.invoke(Kind.WRITE, 1, 9)
    recorder.end(recorder.invoke(Kind.READ, 1), Outcome.OK, 9)
    recorder.close()
    with path.open("r+") as file:
        file.truncate(path.stat().st_size - 3)
    done, failed, killed, cut = read_history(path, worker=2)
    assert (done.kind, done.token, done.seen, done.value) == (Kind.ADD, 3, 4, 5)
    assert done.outcome is Outcome.OK
    assert done.returned is not None
    assert done.invoked < done.returned
    assert (failed.expected, failed.seen, failed.value) == (7, 7, None)
    assert (failed.outcome, failed.error) == (Outcome.FAILED, "LockExpiredError")
    for one in (killed, cut):
        assert (one.outcome, one.returned) == (Outcome.UNCERTAIN, None)
    assert killed.value == 9


def test_interrupted_run_tells_what_there_is(tmp_path: Path) -> None:
    """Ctrl-C ends it in order; the table, the page and the other files are written."""
    files = {name: tmp_path / f"run.{name}" for name in ("json", "html", "markdown")}
    command = [sys.executable, "-m", "chaos", "run", "--minutes", "5", "--processes", "2"]
    command += ["--backend", "disk", "--seed", "5", "--keep", str(tmp_path / "kept")]
    for name, path in files.items():
        command += [f"--{name}", str(path)]
    run = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert run.stderr is not None
        assert "disk: round 1" in run.stderr.readline()
        os.kill(run.pid, signal.SIGINT)
        output, errors = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 130, errors
    assert "seed 5" in output
    assert re.search(r"^acknowledged changes +[1-9]", output, re.MULTILINE)
    assert list((tmp_path / "kept").rglob("*.history"))
    (subject,) = json.loads(files["json"].read_text())["subjects"]
    assert (subject["subject"], subject["seed"]) == ("disk", 5)
    assert subject["operations"] > 0
    assert "| lost | 0 |" in files["markdown"].read_text()
    page = files["html"].read_text()
    assert "prefers-color-scheme: dark" in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert ElementTree.fromstring(drawing).findall("path")  # noqa: S314  # our own


def test_unknown_backend_is_refused() -> None:
    command = [sys.executable, "-m", "chaos", "run", "--backend", "tape"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "choose from disk" in done.stderr


def test_subjects_say_what_they_promise() -> None:
    """A mode that keeps acknowledged changes for itself is not held to what others see."""
    assert [name for name, one in SUBJECTS.items() if one.is_ours and one.window] == [
        "disk-debounced",
        "redis-behind",
    ]
    for name, one in SUBJECTS.items():
        assert dataclasses.asdict(one)["name"] == name
