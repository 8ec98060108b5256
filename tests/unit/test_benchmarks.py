"""`python -m benchmarks`, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks.runner import _interrupts_held_back
from benchmarks.server import ServerError
from statemgr.testing.servers import Server

ROOT = Path(__file__).resolve().parents[2]

SCENARIOS = {
    "burst",
    "chain",
    "change",
    "contended",
    "events",
    "expiry",
    "hot",
    "import",
    "read",
    "serialization",
    "stored",
    "tracked",
}
OPTIONAL = {"burst", "chain", "stored"}
USUAL = {
    "disk",
    "memory",
    "memory/no-rollback",
    "redis",
    "stateless",
    "token",
    "pickle",
    "lock_dict",
    "redis_floor",
    "write_rename",
}
VARIANTS = {"disk/fsync", "disk/exclusive", "disk/debounce", "write_rename/fsync"}
REDIS_VARIANTS = {"redis/through", "redis/behind", "redis_floor/kept"}
PEERS = {
    "diskcache",
    "litestar_file",
    "litestar_memory",
    "litestar_redis",
    "reflex_events",
    "reflex_memory",
    "reflex_disk",
    "reflex_disk/debounced",
    "reflex_redis",
    "reflex_redis/oplock",
    "redis_lock",
}

COMMAND = [sys.executable, "-m", "benchmarks"]
TINY = ["--tokens", "20", "--seconds", "0.005", "--repeats", "1", "--tasks", "4"]


def start(*options: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start the program with its output in pipes."""
    return subprocess.Popen(
        [*COMMAND, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def run(*options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    with start(*options, env=env) as process:
        output, errors = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A run of every usual scenario in its smallest form: the process and its JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    done = run(*TINY, "--json", str(file))
    assert done.returncode == 0, done.stdout
    return done, json.loads(file.read_text())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """A run of every variant of the disk in its smallest form: process, JSON and directory."""
    directory = tmp_path_factory.mktemp("files")
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    options = ["--backends", "disk", "--scenarios", "change,events,stored"]
    options += ["--directory", str(directory), "--json", str(file)]
    done = run(*TINY, *options)
    assert done.returncode == 0, done.stdout
    return done, json.loads(file.read_text()), directory


@pytest.fixture(scope="module")
def on_redis(tmp_path_factory):
    """A run of every variant of Redis in its smallest form: the process and its JSON."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    what = ["--backends", "redis", "--scenarios", "change,contended,events,hot,read"]
    done = run(*TINY, "--tokens", "5", "--tasks", "1", *what, "--json", str(file))
    assert done.returncode == 0, done.stdout
    return done, json.loads(file.read_text())


@pytest.fixture(scope="module")
def of_events(tmp_path_factory):
    """The JSON of the event scenarios in memory, in their smallest form."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    what = ["--scenarios", "events,burst,chain", "--backends", "stateless,memory/no-rollback"]
    done = run(*TINY, *what, "--json", str(file))
    assert done.returncode == 0, done.stdout
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """The JSON of two rounds of one case on one of ours and its floor."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    what = ["--scenarios", "contended", "--backends", "memory/no-rollback"]
    done = run(*TINY, *what, "--repeats", "2", "--json", str(file))
    assert done.returncode == 0, done.stdout
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def smoke_of_two_cases(tmp_path_factory):
    """The JSON of two rounds of changes by 1 task and by 2, of small states and of larger ones."""
    file = tmp_path_factory.mktemp("benchmarks") / "report.json"
    what = ["--scenarios", "change", "--backends", "memory/no-rollback", "--size", "0,5000"]
    done = run(
        *what, "--tasks=1,2", "--tokens=3", "--seconds=0.005", "--repeats=2", f"--json={file}"
    )
    assert done.returncode == 0, done.stdout
    assert "change, 5,000 B" in done.stdout
    return json.loads(file.read_text())


def test_list_names_everything_there_is():
    """Scenarios and subjects are found by their files being there."""
    done = run("list")
    first_words = {line.split()[0] for line in done.stdout.splitlines() if line[0] == " "}
    assert done.returncode == 0
    assert first_words >= SCENARIOS | USUAL | VARIANTS | REDIS_VARIANTS | PEERS


def test_every_usual_scenario_runs(smoke):
    """Each has rows, and prints one table that fits its width."""
    done, report = smoke
    assert {row["case"]["scenario"] for row in report["rows"]} == SCENARIOS - OPTIONAL
    assert "min..max" in done.stdout
    table = done.stdout[: done.stdout.index("expiry:")]
    assert max(map(len, table.splitlines())) <= 120


def test_no_control_codes_when_not_on_a_terminal(smoke):
    """Progress is lines, one for each case."""
    done, report = smoke
    assert "\x1b" not in done.stdout + done.stderr
    assert "\r" not in done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("[")]
    cases = {tuple(measured["case"].items()) for measured in report["measurements"]}
    assert len(lines) == len(cases)


def test_json_has_the_documented_shape(smoke):
    """The report names its origin, and has every raw measurement."""
    _, report = smoke
    assert report.keys() == {
        "format",
        "environment",
        "options",
        "complete",
        "measurements",
        "failures",
        "rows",
    }
    assert report["complete"] is True
    assert report["failures"] == []
    assert report["environment"]["versions"]["statemgr"]
    assert report["environment"]["python"] == sys.version.split()[0]
    assert report["options"]["scale"]["tasks"] == [4]
    for measured in report["measurements"]:
        assert measured.keys() == {"case", "subject", "round", "points", "base"}
        axes = {"tasks", "tokens", "size", "processes"}
        assert measured["case"].keys() == {"scenario", "seconds"} | axes
        for point in measured["points"]:
            assert point["operations"] > 0
            assert point["seconds"] >= point["collector_seconds"] >= 0
            assert point["seconds"] > 0


def test_peers_that_need_an_installation_are_left_out(smoke):
    """Without `--peers` only what costs nothing to have is measured beside ours."""
    _, report = smoke
    assert {row["subject"] for row in report["rows"]} == USUAL


def test_every_variant_is_measured_when_its_backend_is_named(on_disk):
    """A variant that is left out otherwise runs then, and brings its floor along."""
    _, report, _ = on_disk
    changes = {row["subject"] for row in report["rows"] if row["case"]["scenario"] == "change"}
    assert changes == VARIANTS | {"disk", "write_rename", "lock_dict"}


def test_a_variant_stands_beside_what_is_like_it(on_disk):
    """A floor that names a variant takes the place of that of its backend."""
    _, report, _ = on_disk
    floors = {
        row["subject"]: row["versus_floor"]["against"]
        for row in report["rows"]
        if row["case"]["scenario"] == "change" and row["role"] == "ours"
    }
    assert floors == {
        "disk": "write_rename",
        "disk/fsync": "write_rename/fsync",
        "disk/exclusive": "write_rename",
        "disk/debounce": "lock_dict",
    }


def test_files_lie_where_they_are_asked_for_and_are_gone_at_the_end(on_disk):
    """The report tells the file system, and nothing is left in the directory."""
    done, report, directory = on_disk
    assert str(directory) not in json.dumps(report)  # it means nothing elsewhere
    assert f"files on {report['environment']['file_system']}" in " ".join(done.stdout.split())
    assert list(directory.iterdir()) == []


def test_stored_has_a_row_for_each_part(on_disk):
    """What expires is swept; a floor has no sweep."""
    _, report, _ = on_disk
    rows = [row for row in report["rows"] if row["case"]["scenario"] == "stored"]
    parts = ["few-open", "few-change", "open", "change"]
    assert [row["part"] for row in rows if row["subject"] == "disk"] == [*parts, "sweep"]
    assert [row["part"] for row in rows if row["subject"] == "write_rename"] == parts
    assert {row["extra"]["grown"] > 0 for row in rows if row["part"] != "sweep"} == {True}


def test_every_variant_of_redis_stands_beside_what_is_like_it(on_redis):
    """Who writes once per change has a floor that does so, and who writes later one in memory."""
    _, report = on_redis
    floors = {
        row["subject"]: row["versus_floor"]["against"]
        for row in report["rows"]
        if row["case"]["scenario"] == "change" and row["role"] == "ours"
    }
    assert floors == {
        "redis": "redis_floor",
        "redis/through": "redis_floor/kept",
        "redis/behind": "lock_dict",
    }


def test_a_server_tells_what_it_did(on_redis):
    """Of one task's changes it reads as often as there are round trips."""
    done, report = on_redis
    loads = {
        (row["case"]["scenario"], row["subject"]): row["extra"]
        for row in report["rows"]
        if "redis" in row["subject"]
    }
    assert {frozenset(load) for load in loads.values()} == {
        frozenset({"commands", "reads", "server_cpu"})
    }
    assert loads["change", "redis_floor"]["reads"] == 2
    assert loads["change", "redis_floor"]["commands"] == 7
    assert loads["change", "redis_floor/kept"]["reads"] == 1
    assert "reads/op" in done.stdout
    assert report["environment"]["server"] in " ".join(done.stdout.split())


def test_events_change_what_each_backend_keeps(on_disk, on_redis):
    """An event of every variant loads a state and saves it, and is compared with a bare task."""
    rows = {
        row["subject"]: row
        for _, report, *_ in (on_disk, on_redis)
        for row in report["rows"]
        if row["case"]["scenario"] == "events"
    }
    ours = {*VARIANTS, *REDIS_VARIANTS, "disk", "redis"} - {
        "write_rename/fsync",
        "redis_floor/kept",
    }
    assert rows.keys() == ours | {"task_per_event"}
    assert {rows[name]["versus_floor"]["against"] for name in ours} == {"task_per_event"}
    assert rows["redis"]["extra"]["reads"] >= 2


def test_events_are_counted_one_by_one(of_events):
    """Those of chains and bursts too; of a burst each has a latency."""
    points = {
        (measured["case"]["scenario"], measured["subject"]): point
        for measured in of_events["measurements"]
        for point in measured["points"]
    }
    scenarios = {"events": 1, "chain": 100, "burst": 10_000}
    subjects = {"stateless", "memory/no-rollback", "task_per_event"}
    assert points.keys() == {(scenario, subject) for scenario in scenarios for subject in subjects}
    assert {point["operations"] % scenarios[name] for (name, _), point in points.items()} == {0}
    assert points["burst", "stateless"]["latency"]["samples"] == 10_000


def test_processes_share_what_can_be_shared(on_redis):
    """The floors, which know of no other process, are left out."""
    _, report = on_redis
    rows = [row for row in report["rows"] if row["case"]["scenario"] == "hot"]
    assert {row["subject"] for row in rows} == {"redis", "redis/through", "redis/behind"}
    assert {(row["case"]["tokens"], row["case"]["processes"]) for row in rows} == {(5, 2)}


def test_a_server_of_the_user_has_to_be_empty():
    """Nothing is measured, and nothing is removed."""
    with Server() as server:
        server.command("SET", "theirs", "1")
        done = run(*TINY, "--backends", "redis", "--redis-url", server.url)
        assert done.returncode == 1
        assert done.stdout == ""
        assert "is not empty" in done.stderr
        assert server.command("DBSIZE") == 1


def test_a_server_of_the_user_is_left_empty():
    """It is measured with, and each measurement finds nothing of the one before."""
    with Server() as server:
        what = ["--backends", "redis", "--scenarios", "change", "--redis-url", server.url]
        done = run(*TINY, *what)
        assert done.returncode == 0, done.stdout
        assert server.command("DBSIZE") == 0
        assert "cmdstat_evalsha" in server.client().info("commandstats")


def test_a_bad_url_is_told_without_its_password():
    """The first part of one with a slash looks like a port, which the error would quote."""
    url = "redis://:hunter2/x@127.0.0.1:6379/0"
    done = run(*TINY, "--backends", "redis", "--redis-url", url)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "error: --redis-url is no URL of a Redis server" in done.stderr
    assert "hunter2" not in done.stderr


def test_subjects_take_turns(two_rounds):
    """Within a case the rounds of the subjects alternate."""
    order = [(measured["round"], measured["subject"]) for measured in two_rounds["measurements"]]
    assert order == [
        (number, subject) for number in (1, 2) for subject in ("memory/no-rollback", "lock_dict")
    ]


def test_every_round_goes_through_all_cases(smoke_of_two_cases):
    """Who ends a run early has whole rounds of everything."""
    order = [
        (one["round"], one["case"]["size"], one["case"]["tasks"])
        for one in smoke_of_two_cases["measurements"]
    ]
    assert order == sorted(order)
    assert len(set(order)) == 8


def test_sizes_and_numbers_of_tokens_are_cases_of_their_own(smoke_of_two_cases):
    """The rows name what tells one case from another."""
    cases = [row["case"] for row in smoke_of_two_cases["rows"]]
    assert {(case["tasks"], case["tokens"], case["size"]) for case in cases} == {
        (tasks, 3, size) for tasks in (1, 2) for size in (0, 5_000)
    }


def test_time_is_up_when_it_was_said(tmp_path):
    """Nothing more is begun, and what was measured is shown."""
    file = tmp_path / "report.json"
    what = ["--scenarios", "contended", "--backends", "memory", "--time-limit", "0.001"]
    done = run(*TINY, *what, "--json", str(file))
    assert done.returncode == 0
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert len(report["measurements"]) < 3
    assert f"{len(report['measurements'])} of 3 measurements in" in done.stdout


def test_rows_are_medians_and_ratios_of_the_rounds(two_rounds):
    """What the table says follows from the measurements in the same file."""

    def rates(subject: str) -> list[float]:
        return [
            point["operations"] / point["seconds"]
            for measured in two_rounds["measurements"]
            if measured["subject"] == subject
            for point in measured["points"]
        ]

    ours, floor = rates("memory/no-rollback"), rates("lock_dict")
    [row] = [row for row in two_rounds["rows"] if row["subject"] == "memory/no-rollback"]
    assert row["rounds"] == 2
    assert row["rate"] == median(ours)
    assert (row["rate_min"], row["rate_max"]) == (min(ours), max(ours))
    assert row["versus_peer"] is None
    ratios = [a / b for a, b in zip(ours, floor, strict=True)]
    assert row["versus_floor"] == {
        "against": "lock_dict",
        "value": median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "rounds": 2,
    }


def test_tracked_has_a_row_for_each_part(smoke):
    """One process may report several points."""
    _, report = smoke
    parts = [row["part"] for row in report["rows"] if row["case"]["scenario"] == "tracked"]
    assert set(parts) == {"alone", "hot", "all"}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--tasks", "0"], "'0' is not a number from 1 on"),
        (["--size", "0,50"], "not sizes from 100 on, or 0"),
        (["--seconds", "nan"], "'nan' is not a number"),
        (["--backends", "floppy"], "unknown backend 'floppy'"),
        (["--scenarios", "sleep"], "unknown scenario 'sleep'"),
        (["--backends", "token", "--scenarios", "read"], "none of these backends"),
        (["--json", "no-such-directory/report.json"], "cannot write to"),
        (["--directory", "no-such-directory"], "cannot write to 'no-such-directory'"),
        (["--fast"], "unrecognized arguments: --fast"),
        (["--base", "/"], "'/' is no checkout"),
        (["compare", "no-such-file"], "cannot read 'no-such-file'"),
        (["compare", "README.md"], "README.md is no file that --json wrote"),
        (["compare", *["README.md"] * 3], "one file or two"),
        (["compare", "README.md", "--threshold", "2"], "'2' is not between 0 and 1"),
        (["report", "README.md"], "README.md is no file that --json wrote"),
        (["measure"], "invalid choice: 'measure'"),
    ],
)
def test_bad_options_are_one_line(options, complaint):
    """A bad option ends the program before anything is measured."""
    done = run(*options)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert complaint in done.stderr


def test_a_failed_measurement_is_told_and_the_others_go_on(tmp_path):
    """A child that fails costs its row only, and the exit code."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "if any('lock_dict' in word for word in sys.orig_argv):\n"
        "    sys.exit('out of luck')\n"
    )
    done = run(*TINY, "--scenarios", "contended", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert (
        "failed 1x: contended, 4 tasks, 1 token, lock_dict: SystemExit: out of luck" in done.stdout
    )
    assert "memory/no-rollback" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_ctrl_c_keeps_what_was_measured_and_ends_the_children(tmp_path):
    """What was measured is printed and written, and no process is left."""
    tokens = str(1_000 + os.getpid() % 9_000)  # tells our children from those of another run
    file = tmp_path / "report.json"
    files = tmp_path / "files"
    files.mkdir()
    options = ["--scenarios", "expiry,read", "--tokens", tokens, "--repeats", "1"]
    options += ["--backends", "memory", "--directory", str(files)]
    with start(*options, "--seconds", "5", "--json", str(file)) as process:
        assert process.stderr is not None
        assert "expiry" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "2 of 5 measurements in" in output
    assert "(interrupted)" in output
    report = json.loads(file.read_text())
    assert report["complete"] is False
    assert {row["case"]["scenario"] for row in report["rows"]} == {"expiry"}
    assert not [line for line in command_lines() if f'"tokens": {tokens}' in line]
    assert list(files.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_ctrl_c_ends_the_server_and_its_clients(tmp_path):
    """They are processes that the measured one, or the runner, has started."""
    tokens = str(1_000 + os.getpid() % 9_000)
    options = ["--backends", "redis/through", "--scenarios", "hot", "--tokens", tokens]
    marks = (str(tmp_path), f'"tokens": {tokens}')

    def ours() -> list[str]:
        return [line for line in command_lines() if any(mark in line for mark in marks)]

    with start(*options, "--seconds", "9", env={**os.environ, "TMPDIR": str(tmp_path)}) as process:
        while not any("benchmarks.clients" in line for line in ours()):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
    assert ours() == []
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_counts_while_a_server_fails_to_start():
    """The run ends, rather than going on with one more failure."""
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), _interrupts_held_back():
        signal.raise_signal(signal.SIGINT)
        raise ServerError("it does not start")
    assert signal.getsignal(signal.SIGINT) is handler


def command_lines() -> list[str]:
    """Return the command line of every process there is."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text(errors="replace"))
        except OSError:
            continue
    return lines
