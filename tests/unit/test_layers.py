"""Imports run one way: down the layers, or sideways within a package."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import statemgr

ROOT = Path(statemgr.__file__).parents[1]
LAYERS = [
    {"benchmarks", "chaos", "statemgr"},  # the package itself: its names, for those who use it
    {"statemgr.events", "statemgr.testing"},
    {"statemgr.backends"},
    {"statemgr.manager", "statemgr.modification", "statemgr.expiration", "statemgr.live"},
    {
        *("statemgr.locks", "statemgr.record", "statemgr.settings", "statemgr.statistics"),
        *("statemgr.redaction", "statemgr.options"),
    },
    {"statemgr.token"},
    {"statemgr.serialization"},
    {"statemgr.errors", "statemgr.clock", "statemgr.cancellation"},
]
PACKAGES = {"statemgr.events", "statemgr.testing"}  # neither imports the other
RANKS = {name: rank for rank, names in enumerate(reversed(LAYERS)) for name in names}
FACTORY = ("statemgr.manager", "create")  # StateManager.create() has to know the backends


def _files() -> list[Path]:
    return sorted(
        p for top in ("statemgr", "benchmarks", "chaos") for p in (ROOT / top).rglob("*.py")
    )


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _imports(path: Path) -> Iterator[str]:
    """Yield what a file imports of ours; nothing under `if TYPE_CHECKING`."""
    module, known = _module(path), {_module(file) for file in _files()}
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    for node in nodes:  # which grows
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef) and (module, node.name) == FACTORY:
            continue
        nodes.extend(ast.iter_child_nodes(node))
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            inside = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in known else base for name in inside]
        yield from (
            name for name in names if name.split(".")[0] in {"statemgr", "benchmarks", "chaos"}
        )


def _unit(module: str) -> str:
    """Return the module or package that has a place among the layers."""
    parts = module.split(".")
    return parts[0] if parts[0] != "statemgr" else ".".join(parts[:2])


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_run_down_the_layers(path: Path) -> None:
    """Or sideways: within a package, or between plain modules of one layer."""
    importer = _unit(_module(path))
    for name in _imports(path):
        imported = _unit(name)
        beside = RANKS[imported] == RANKS[importer] and imported not in PACKAGES
        assert imported == importer or beside or RANKS[imported] < RANKS[importer], name


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_backends_do_not_import_each_other_and_events_import_none(path: Path) -> None:
    """`statemgr.backends` itself names them by text, and is no backend."""
    module = _module(path)
    backend = ".".join(module.split(".")[:3])
    for name in _imports(path):
        if name.startswith("statemgr.backends"):
            assert not module.startswith("statemgr.events"), name
            if module.startswith("statemgr.backends"):
                assert ".".join(name.split(".")[:3]) in {backend, "statemgr.backends"}, name


def test_every_module_has_a_place() -> None:
    """A new module is given one here, with the reason in its own head."""
    assert {_unit(_module(path)) for path in _files()} <= set(RANKS)
