"""The public names: what they cost to import, that all are there, and that no more are."""

import subprocess
import sys
import textwrap

import pytest

import statemgr

HEAVY = ("redis", "hiredis", "pydantic", "attrs", "attr", "cryptography")
FOR_TESTS = ("hypothesis", "pytest", "pytest_asyncio", "rich")


def _run(script: str) -> str:
    ran = subprocess.run(  # our own script
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stderr == ""
    return ran.stdout


class TestImporting:
    def test_a_program_with_memory_states_imports_nothing_it_does_not_need(self) -> None:
        """Not even once it has saved and read a state."""
        loaded = _run("""
            import asyncio, dataclasses, sys
            import statemgr
            from statemgr import Settings, StateManager, StateManagerMemory, StateToken

            @dataclasses.dataclass
            class Cart:
                items: list[str] = dataclasses.field(default_factory=list)

            async def main():
                async with StateManagerMemory() as manager:
                    async with manager.modify_state(StateToken("u", Cart)) as cart:
                        cart.items.append("pen")
                    return await manager.get_state(StateToken("u", Cart))

            assert asyncio.run(main()) == Cart(["pen"])
            print(*sys.modules)
        """).split()
        assert "statemgr.backends.memory" in loaded
        assert set(loaded).isdisjoint({*HEAVY, *FOR_TESTS})

    def test_the_package_alone_imports_no_backend_and_no_serializer(self) -> None:
        loaded = _run("""
            import sys
            before = set(sys.modules)
            import statemgr
            print(*(set(sys.modules) - before))
        """).split()
        ours = {name for name in loaded if name.startswith("statemgr")}
        assert ours == {"statemgr", "statemgr.errors"}
        assert set(loaded).isdisjoint({*HEAVY, *FOR_TESTS, "msgspec", "msgpack", "asyncio"})


class TestNames:
    @pytest.mark.parametrize("name", statemgr.__all__)
    def test_a_public_name_is_there_and_described(self, name: str) -> None:
        assert getattr(statemgr, name).__doc__

    def test_what_design_names_is_public(self) -> None:
        assert {
            "StateManager",
            "StateToken",
            "StateModification",
            "StateManagerMemory",
            "StateManagerExpiration",
            "Settings",
            "Serializer",
            "MsgpackSerializer",
            "PickleSerializer",
            "errors",
        } <= set(statemgr.__all__)

    def test_the_names_are_sorted_and_dir_knows_them(self) -> None:
        assert sorted(statemgr.__all__) == list(statemgr.__all__)
        assert set(statemgr.__all__) <= set(dir(statemgr))

    def test_a_name_is_the_same_object_each_time(self) -> None:
        assert statemgr.StateManager is statemgr.StateManager
        assert vars(statemgr)["StateManager"] is statemgr.StateManager

    def test_a_star_import_brings_them_all(self) -> None:
        """In a fresh interpreter, where none has been touched."""
        printed = _run("""
            from statemgr import *
            import statemgr
            print(sorted(set(statemgr.__all__) - set(globals())))
        """)
        assert printed == "[]\n"

    @pytest.mark.parametrize("name", ["StateManger", "manager_options", "_x", "__path"])
    def test_an_unknown_name_is_an_attribute_error(self, name: str) -> None:
        with pytest.raises(AttributeError, match=f"'statemgr' has no attribute '{name}'"):
            getattr(statemgr, name)

    def test_an_unknown_name_cannot_be_imported(self) -> None:
        with pytest.raises(ImportError, match="StateManger"):
            from statemgr import StateManger  # type: ignore[attr-defined]  # noqa: F401

    def test_every_public_method_is_described(self) -> None:
        for name in ("StateManager", "StateToken", "StateModification"):
            for attribute, value in vars(getattr(statemgr, name)).items():
                if callable(value) and not attribute.startswith("_"):
                    assert value.__doc__, f"{name}.{attribute}"
