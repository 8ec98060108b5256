"""What README.md and docs/ say is so: code runs, links lead somewhere, names are of things there.

A block of Python runs as it is pasted into a file. Blocks with a title are files of that name in
one directory, for each document: one called test_... is run by pytest. A block of shell with the
title `run` is run there too. What stands right behind either in a block of text is what it prints.
"""

import configparser
import contextlib
import importlib
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hypothesis
import pytest

import statemgr.events
from benchmarks.files import read_report
from statemgr import Settings, errors
from statemgr.options import OPTIONS, variable_of
from statemgr.testing.servers import Server, find_server, wait_until
from statemgr.testing.servers.ports import free_port

ROOT = Path(__file__).parents[2]
# Decisions tell what was so when they were made.
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
ALL = [*DOCUMENTS, *PAGES, *sorted((ROOT / "docs/decisions").glob("*.md"))]
RUN = [DOCUMENTS[0], *PAGES]
NEEDS = ("starlette", "uvicorn", "opentelemetry")  # not among what the oldest versions are of


@dataclass(frozen=True)
class Block:
    document: Path
    number: int
    language: str
    title: str
    text: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.document.name}-{self.title or self.number}"


def blocks_of(document: Path) -> list[Block]:
    text = document.read_text()
    found = list(
        re.finditer(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    )
    blocks = []
    for number, (block, after) in enumerate(itertools.zip_longest(found, found[1:])):
        follows = after is not None and not text[block.end() : after.start()].strip()
        prints = after[3] if after is not None and follows and after[1] == "text" else None
        blocks.append(Block(document, number, block[1], block[2] or "", block[3], prints))
    return blocks


def check_output(block: Block, output: str) -> None:
    """Compare; `...` in what is shown stands for anything within a line."""
    if block.prints is None:
        return
    printed = output.splitlines()
    shown = [re.escape(line).replace(r"\.\.\.", ".*") for line in block.prints.splitlines()]
    assert len(printed) == len(shown), printed
    assert all(map(re.fullmatch, shown, printed)), printed


BLOCKS = [block for document in RUN for block in blocks_of(document)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def run_in(directory: Path, *command: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment(),
        input="\n",
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("STATEMGR_")}
    return ours | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def write_files_of(document: Path, directory: Path) -> None:
    for block in blocks_of(document):
        if block.title and block.title != "run" and "/" not in block.title:
            (directory / block.title).write_text(block.text)


def skip_without_what_it_imports(text: str) -> None:
    for module in NEEDS:
        if re.search(rf"^(?:from|import) {module}\b", text, re.MULTILINE):
            pytest.importorskip(module)


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_code_runs_when_pasted_into_a_file(block: Block, tmp_path: Path) -> None:
    skip_without_what_it_imports(block.text)
    write_files_of(block.document, tmp_path)
    name = block.title or "pasted.py"
    (tmp_path / name).write_text(block.text)
    if name.startswith("test_"):
        # Its own settings of pytest, as a reader's project has them. Old Hypothesis takes ten times
        # as long for a state machine.
        options = ["--quiet", "-o", "asyncio_default_fixture_loop_scope=function"]
        if hypothesis.__version_info__ < (6, 130):
            options += ["-k", "not Model"]
        run_in(tmp_path, sys.executable, "-m", "pytest", *options, name)
    else:
        check_output(block, run_in(tmp_path, sys.executable, "-W", "error", name))


READERS_URL = "redis://127.0.0.1:6379/0"
RUNNABLE = [block for block in BLOCKS if block.title == "run"]


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_shell_prints_what_the_document_shows(block: Block, tmp_path: Path) -> None:
    """Where it names a server, the reader has one."""
    write_files_of(block.document, tmp_path)
    with contextlib.ExitStack() as opened:
        text = block.text
        if READERS_URL in text:
            text = text.replace(READERS_URL, opened.enter_context(Server()).url)
        check_output(block, run_in(tmp_path, "bash", "-e", "-c", text))


def test_application_of_the_tutorial_counts_visits_of_two_workers(tmp_path: Path) -> None:
    """It is started as the page says, on a port of its own."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    document = ROOT / "docs/tutorial.md"
    write_files_of(document, tmp_path)
    (shell,) = [
        block.text
        for block in blocks_of(document)
        if "uvicorn" in block.text and block.language == "sh" and "pip" not in block.text
    ]
    port = free_port(bus=False)
    command = ["bash", "-c", shell.replace("uvicorn ", f"exec uvicorn --port {port} ")]
    with open_process(command, tmp_path) as process:
        url = f"http://127.0.0.1:{port}/page/7"
        wait_until(
            lambda: process.poll() is not None or is_answered(url), "the application answers"
        )
        visits = [json.loads(read(url))["visits"] for _ in range(10)]
    assert visits == list(range(visits[0], visits[0] + 10))


@contextlib.contextmanager
def open_process(command: list[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, cwd=directory, env=environment()) as process:
        try:
            yield process
        finally:
            process.terminate()


def is_answered(url: str) -> bool:
    with contextlib.suppress(OSError):
        read(url)
        return True
    return False


def read(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # it is ours
        return bytes(answer.read())


def commands() -> list[tuple[str, str]]:
    """Return each line of shell in a document, with the document's name."""
    found = []
    for document in [*DOCUMENTS, *PAGES]:
        text = document.read_text()
        lines = [
            line
            for b in blocks_of(document)
            if b.language in ("sh", "console", "text")
            for line in b.text.splitlines()
        ]
        lines += re.findall(r"^    (\S.*)$", re.sub(r"(?ms)^```.*?^```$", "", text), re.MULTILINE)
        lines += re.findall(r"`([^`\n]+)`", text)
        found += [(document.name, line.partition("  #")[0].strip(" $")) for line in lines]
    return found


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for _, line in commands() if (match := re.match(r"make ([a-z-]+)\b", line))}
    assert {"test", "bench", "docs"} <= named
    assert named <= targets


def test_options_of_modules_in_documents_exist() -> None:
    """`python -m benchmarks --peers`: the module has the option, by its own help."""
    seen: dict[tuple[str, ...], str] = {}
    for document, line in commands():
        match = re.search(r"python -m ((?:benchmarks|chaos|examples)[\w.]*)(.*)", line)
        if match is None:
            continue
        words = shlex.split(match[2].replace("`", "").rstrip("\\"))
        command = (match[1], *words[:1]) if words and words[0].isalpha() else (match[1],)
        if command == ("benchmarks",):
            command = ("benchmarks", "run")  # which may be left out
        if command not in seen:
            pytest.importorskip("rich")
            seen[command] = run_in(ROOT, sys.executable, "-m", *command, "--help")
        for word in words:
            if word.startswith("--"):
                assert word.partition("=")[0] in seen[command], f"{document}: {line}"
    assert seen


def test_extras_in_documents_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        extra
        for document in [*DOCUMENTS, *PAGES]
        for extras in re.findall(r"(?:statemgr|'\.)\[([a-z,]+)\]", document.read_text())
        for extra in extras.split(",")
    }
    assert "testing" in named
    assert named <= project["optional-dependencies"].keys()


def test_variables_in_documents_are_settings() -> None:
    ours = {"STATEMGR_KILLS", "STATEMGR_STOPS", "STATEMGR_SEED"}  # of tests
    known = set(map(variable_of, OPTIONS)) | ours
    for document in [*DOCUMENTS, *PAGES]:
        for variable in re.findall(r"STATEMGR_[A-Z_]*[A-Z]", document.read_text()):
            assert variable in known, f"{document.name}: {variable}"


@pytest.mark.parametrize("document", ALL, ids=lambda document: document.name)
def test_links_and_paths_of_a_document_lead_somewhere(document: Path) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", document.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), target


def slug(heading: str) -> str:
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def names_on(page: Path) -> set[str]:
    """Return the names that stand in code on a page: `change.discard()` is `discard`, too."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", page.read_text()))))


def public_names_of(cls: type) -> set[str]:
    """Return what a class and its bases here have, without an underscore before it."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("statemgr")]
    return {name for base in ours for name in vars(base) if not name.startswith("_")}


def test_everything_public_is_on_the_page_of_the_interface() -> None:
    raised = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.StateManagerError)
    }
    classes = [getattr(statemgr, name) for name in statemgr.__all__ if name != "errors"]
    classes += [
        value
        for name in statemgr.events.__all__
        if isinstance(value := getattr(statemgr.events, name), type)
    ]
    public = {*statemgr.__all__, *statemgr.events.__all__, *raised}
    for cls in classes:
        if not issubclass(cls, Settings):  # whose fields are on the page of the settings
            public |= public_names_of(cls)
    slots_of_backends = {"grant", "locked_since", "state_key", "task"}
    assert public - slots_of_backends - names_on(ROOT / "docs/api.md") == set()


def test_the_table_of_extras_has_them_all() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = re.search(
        r"^\| extra \|.*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert found is not None
    named = re.findall(r"^\| `(\w+)` \|", found[0], re.MULTILINE)
    assert sorted(named) == sorted(project["optional-dependencies"])


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == [page.name for page in PAGES]


# What is written from the code


def generator() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs/scripts")
        return importlib.import_module("generate")


def test_generated_pages_are_what_the_code_gives() -> None:
    """Else run `make docs`, or `python docs/scripts/generate.py`."""
    generate = generator()
    assert generate.SETTINGS.read_text() == generate.settings_page()


def test_figures_are_those_of_the_committed_run() -> None:
    """In the README and on the page of performance: else run `make docs`."""
    generate = generator()
    report = read_report(generate.RESULTS)
    readme, performance = generate.README.read_text(), generate.PERFORMANCE.read_text()
    assert readme == generate.readme_page(readme, report)
    assert performance == generate.performance_page(performance, readme, report)
    assert report.complete
    assert not report.failures
    assert report.environment["versions"]["reflex"]


def test_another_run_gives_other_figures() -> None:
    """What the README shows is looked up, and a figure that is not there is an error."""
    generate = generator()
    report = read_report(generate.RESULTS)
    readme = generate.README.read_text()
    twice = [
        replace(
            measured,
            points=tuple(replace(one, operations=2 * one.operations) for one in measured.points),
        )
        if measured.subject == "memory"
        else measured
        for measured in report.measurements
    ]
    assert generate.readme_page(readme, replace(report, measurements=twice)) != readme
    without = [measured for measured in report.measurements if measured.subject != "memory"]
    with pytest.raises(LookupError, match="0 cases are change"):
        generate.readme_page(readme, replace(report, measurements=without))


def test_each_setting_is_in_one_group_of_the_page() -> None:
    grouped = [name for names in generator().GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(OPTIONS)


def test_defaults_in_the_readme_are_those_of_the_code() -> None:
    rows = re.findall(
        r"^\| `(STATEMGR_\w+)` \| (.*?) \| ", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    known = {variable_of(name): option for name, option in OPTIONS.items()}
    for variable, shown in rows:
        default = known[variable].default
        if shown.strip("`").lower() == "none" or " " in shown or shown == "never":
            assert not default, variable
        elif isinstance(default, bool):
            assert shown == ("on" if default else "off"), variable
        else:
            assert shown.strip("`") == (
                str(default) if isinstance(default, str) else f"{default:.10g}"
            ), variable


# Files of other programs


def test_units_of_systemd_set_what_is_a_setting() -> None:
    units = [block for block in BLOCKS if block.language == "ini"]
    assert units
    for block in units:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment]
        unit.read_string(block.text)
        assert unit.sections()[0] == "Unit", block
        lines = re.findall(r"^Environment=(.*)$", block.text, re.MULTILINE)
        Settings.from_env(dict(line.partition("=")[::2] for line in lines))


def test_servers_take_the_configuration_of_the_deployment_page() -> None:
    """It has the values that are shown, and the user there has the rights that changes need."""
    name = "valkey-9.1"
    if find_server(name) is None:
        pytest.skip(f"{name} is not installed")
    (config,) = [block.text for block in BLOCKS if block.language == "conf"]
    lines = [line.split(None, 1) for line in config.splitlines() if line and line[0] not in "#u"]
    with Server(name, config=config, **_not_given(lines)) as server:
        for setting, value in lines:
            found = server.command("CONFIG", "GET", setting)[1].decode()
            assert found == generous(value), setting


def _not_given(lines: list[list[str]]) -> dict[str, Any]:
    return {
        name.replace("-", "_"): value for name, value in lines if name in ("save", "appendonly")
    }


def generous(value: str) -> str:
    found = re.fullmatch(r"(\d+)(gb|mb)", value)
    if found is None:
        return value.strip('"')
    return str(int(found[1]) * {"gb": 2**30, "mb": 2**20}[found[2]])


def test_documents_agree_about_the_rights_of_a_user() -> None:
    """The README, docs/redis.md and docs/deployment.md have one list."""
    found = set()
    for name in ("README.md", "docs/redis.md", "docs/deployment.md"):
        text = " ".join((ROOT / name).read_text().split())
        match = re.search(r"~statemgr:\* resetchannels &statemgr:\* -@all((?: \+[a-z]+)+)", text)
        assert match is not None, name
        found.add(match[1])
    assert len(found) == 1
