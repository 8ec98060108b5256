"""A mode's name leads to its backend: built in, or offered by another package."""

import importlib
import sys
from pathlib import Path

import pytest

from statemgr import Settings, StateManager, StateManagerMemory
from statemgr.backends import load_backend
from statemgr.errors import SettingsError

MODULE = """
from statemgr import StateManagerMemory

class Acme(StateManagerMemory):
    pass

class Other(StateManagerMemory):
    pass

nothing = None

def make(**options):
    return Acme(**options)
"""
ENTRY_POINTS = """
[statemgr.backends]
acme = acme_backend:Acme
memory = acme_backend:Other
function = acme_backend:make
nothing = acme_backend:nothing
lost = acme_backend:Missing
gone = acme_gone:Acme
broken = acme_broken:Acme
other-class = pathlib:Path
abstract = statemgr.manager:StateManager

[another.group]
elsewhere = acme_backend:Acme
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package that offers backends, some of them unusable."""
    (tmp_path / "acme_backend.py").write_text(MODULE)
    (tmp_path / "acme_broken.py").write_text("raise RuntimeError('no licence')")
    metadata = tmp_path / "acme_backend-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-backend\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    for module in ("acme_backend", "acme_broken"):
        monkeypatch.delitem(sys.modules, module, raising=False)


class TestLoading:
    def test_a_built_in_mode_is_its_class(self) -> None:
        assert load_backend("memory") is StateManagerMemory

    @pytest.mark.usefixtures("installed")
    def test_an_installed_one_is_found_by_its_entry_point(self) -> None:
        backend = load_backend("acme")
        assert (backend.__module__, backend.__name__) == ("acme_backend", "Acme")

    @pytest.mark.usefixtures("installed")
    def test_a_built_in_one_cannot_be_replaced(self) -> None:
        assert load_backend("memory") is StateManagerMemory

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize("mode", ["nowhere", "elsewhere", "Memory", " memory", "memory:x"])
    def test_an_unknown_mode_is_refused_with_those_there_are(self, mode: str) -> None:
        with pytest.raises(SettingsError) as caught:
            load_backend(mode)
        assert caught.value.variable == "STATEMGR_MODE"
        assert f"STATEMGR_MODE={mode!r}" in str(caught.value)
        assert {"memory", "acme"} <= set(caught.value.allowed.split(" or "))
        assert "elsewhere" not in caught.value.allowed

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize(
        ("mode", "cause"),
        [("lost", AttributeError), ("gone", ModuleNotFoundError), ("broken", RuntimeError)],
    )
    def test_one_that_cannot_be_imported_says_so_with_the_cause(
        self, mode: str, cause: type[Exception]
    ) -> None:
        with pytest.raises(SettingsError, match="can be imported; acme_") as caught:
            load_backend(mode)
        assert caught.value.variable == "STATEMGR_MODE"
        assert isinstance(caught.value.__cause__, cause)

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize("mode", ["function", "nothing", "other-class"])
    def test_one_that_is_no_state_manager_is_refused(self, mode: str) -> None:
        with pytest.raises(SettingsError, match="subclass of StateManager"):
            load_backend(mode)

    @pytest.mark.usefixtures("installed")
    def test_one_that_is_abstract_is_refused(self) -> None:
        with pytest.raises(SettingsError):
            StateManager.create(Settings(mode="abstract"))


class TestCreating:
    async def test_the_environment_chooses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STATEMGR_MODE", "memory")
        monkeypatch.setenv("STATEMGR_TOKEN_EXPIRATION", "5")
        manager = StateManager.create()
        assert type(manager) is StateManagerMemory
        assert manager.token_expiration == 5.0

    @pytest.mark.usefixtures("installed")
    async def test_settings_choose_whatever_the_environment_says(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STATEMGR_MODE", "nowhere")
        manager = StateManager.create(Settings(mode="acme", max_state_size=7))
        assert type(manager).__name__ == "Acme"
        assert manager.max_state_size == 7

    async def test_a_backends_own_class_makes_that_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STATEMGR_MODE", "nowhere")
        assert type(StateManagerMemory.create()) is StateManagerMemory
        settings = Settings(mode="nowhere", memory_rollback=False)
        made = StateManagerMemory.create(settings)
        assert isinstance(made, StateManagerMemory)
        assert not made.rollback

    def test_a_bad_environment_is_a_settings_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STATEMGR_MODE", "nowhere")
        with pytest.raises(SettingsError, match="STATEMGR_MODE='nowhere'"):
            StateManager.create()
        monkeypatch.setenv("STATEMGR_MODE", "memory")
        monkeypatch.setenv("STATEMGR_TOKEN_EXPIRATION", "soon")
        with pytest.raises(SettingsError, match="STATEMGR_TOKEN_EXPIRATION='soon'"):
            StateManagerMemory.create()
