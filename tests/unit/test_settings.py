"""Every setting is read, checked and named in one place, and secrets stay in it."""

import ast
import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import statemgr
from statemgr import Settings
from statemgr.errors import SettingsError, StateDirectoryInUseError
from statemgr.options import OPTIONS, variable_of
from statemgr.settings import _OF_CONTAINERS

SECRET = "hunter2"
HEX_KEY, OTHER_HEX_KEY = "ab" * 32, "cd" * 32

READ: dict[str, tuple[str, str, Any]] = {
    "mode": ("STATEMGR_MODE", "acme", "acme"),
    "redis_url": ("STATEMGR_REDIS_URL", "redis://h:1/2", "redis://h:1/2"),
    "disk_directory": ("STATEMGR_DISK_DIRECTORY", "/var/states", "/var/states"),
    "token_expiration": ("STATEMGR_TOKEN_EXPIRATION", "90.5", 90.5),
    "lock_expiration": ("STATEMGR_LOCK_EXPIRATION", "20", 20.0),
    "lock_warning_threshold": ("STATEMGR_LOCK_WARNING_THRESHOLD", "0.25", 0.25),
    "oplock": ("STATEMGR_OPLOCK", "behind", "behind"),
    "oplock_hold_time": ("STATEMGR_OPLOCK_HOLD_TIME", "2.5", 2.5),
    "redis_durability": ("STATEMGR_REDIS_DURABILITY", "replicated", "replicated"),
    "redis_replicas": ("STATEMGR_REDIS_REPLICAS", "2", 2),
    "disk_exclusive": ("STATEMGR_DISK_EXCLUSIVE", "yes", True),
    "disk_debounce": ("STATEMGR_DISK_DEBOUNCE", "0", 0.0),
    "disk_fsync": ("STATEMGR_DISK_FSYNC", "on", True),
    "memory_rollback": ("STATEMGR_MEMORY_ROLLBACK", "off", False),
    "key_prefix": ("STATEMGR_KEY_PREFIX", "app", "app"),
    "on_decode_error": ("STATEMGR_ON_DECODE_ERROR", "reset", "reset"),
    "max_state_size": ("STATEMGR_MAX_STATE_SIZE", "1000", 1000),
    "compress_above": ("STATEMGR_COMPRESS_ABOVE", "500", 500),
    "encryption_keys": (
        "STATEMGR_ENCRYPTION_KEYS",
        f"{HEX_KEY},{OTHER_HEX_KEY}",
        (bytes.fromhex(HEX_KEY), bytes.fromhex(OTHER_HEX_KEY)),
    ),
    "log_idents": ("STATEMGR_LOG_IDENTS", "1", True),
    "log_key": ("STATEMGR_LOG_KEY", SECRET, SECRET),
}

BAD_SECONDS = ["0", "-1", "nan", "inf", "1e999", "ten", "1 s"]
BAD_SIZES = ["0", "-1", "1.5", "16 MiB"]
BAD_SWITCHES = ["2", "maybe", "truee"]
BAD = [
    *((name, text) for name in ("token_expiration", "lock_expiration") for text in BAD_SECONDS),
    *(
        (name, text)
        for name in ("lock_warning_threshold", "oplock_hold_time")
        for text in BAD_SECONDS
    ),
    *(("disk_debounce", text) for text in ("-1", "nan", "inf", "soon")),
    *((name, text) for name in ("max_state_size", "compress_above") for text in BAD_SIZES),
    *((name, text) for name in ("disk_exclusive", "disk_fsync") for text in BAD_SWITCHES),
    *((name, text) for name in ("memory_rollback", "log_idents") for text in BAD_SWITCHES),
    ("oplock", "on"),
    ("redis_durability", "wait"),
    *(("redis_replicas", text) for text in ("0", "-1", "all")),
    *(("key_prefix", text) for text in ("a{b", "a}b")),
    ("on_decode_error", "ignore"),
]


class TestFromEnv:
    def test_every_option_has_an_example_here(self) -> None:
        assert set(READ) == set(OPTIONS) == {f.name for f in dataclasses.fields(Settings)}

    @pytest.mark.parametrize("name", READ)
    def test_a_variable_is_read(self, name: str) -> None:
        variable, text, value = READ[name]
        assert variable == variable_of(name)
        read = getattr(Settings.from_env({variable: text}), name)
        assert read == value
        assert type(read) is type(value)
        assert read != getattr(Settings(), name) or name == "disk_debounce"

    @pytest.mark.parametrize(
        ("text", "value"),
        [(text, True) for text in ("1", "true", "TRUE", " Yes ", "on")]
        + [(text, False) for text in ("0", "false", "No", "off ")],
    )
    def test_a_switch_has_several_words(self, text: str, value: bool) -> None:
        environ = {"STATEMGR_DISK_FSYNC": text, "STATEMGR_MEMORY_ROLLBACK": text}
        settings = Settings.from_env(environ)
        assert settings.disk_fsync is settings.memory_rollback is value

    def test_all_variables_together(self) -> None:
        environ = {variable: text for variable, text, _ in READ.values()}
        environ["STATEMGR_DISK_DEBOUNCE"] = "0.5"
        settings = Settings.from_env(environ)
        wanted = {name: value for name, (_, _, value) in READ.items()} | {"disk_debounce": 0.5}
        assert dataclasses.asdict(settings) == wanted

    def test_nothing_set_gives_the_defaults(self) -> None:
        assert Settings.from_env({}) == Settings()
        assert Settings.from_env({"PATH": "/bin", "STATEMGRX": "1"}) == Settings()

    def test_an_empty_variable_counts_as_not_set(self) -> None:
        empty = dict.fromkeys((variable for variable, _, _ in READ.values()), "")
        assert Settings.from_env(empty) == Settings()

    def test_the_processes_own_environment_is_the_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for variable in [v for v in os.environ if v.startswith("STATEMGR_")]:
            monkeypatch.delenv(variable)
        monkeypatch.setenv("STATEMGR_TOKEN_EXPIRATION", "12")
        assert Settings.from_env() == Settings(token_expiration=12.0)

    def test_the_defaults(self) -> None:
        settings = Settings()
        assert (settings.mode, settings.token_expiration) == ("memory", 3600.0)
        assert (settings.lock_expiration, settings.lock_warning_threshold) == (10.0, 1.0)
        assert (settings.oplock, settings.on_decode_error) == ("off", "raise")
        assert settings.max_state_size == 16 * 2**20
        assert settings.memory_rollback
        assert not settings.log_idents

    @pytest.mark.parametrize(
        ("environ", "mode"),
        [
            ({}, "memory"),
            ({"STATEMGR_REDIS_URL": "redis://h"}, "redis"),
            ({"STATEMGR_MODE": "memory", "STATEMGR_REDIS_URL": "redis://h"}, "memory"),
            ({"STATEMGR_MODE": "disk", "STATEMGR_REDIS_URL": "redis://h"}, "disk"),
            ({"STATEMGR_MODE": "redis"}, "redis"),
            ({"STATEMGR_MODE": "acme"}, "acme"),
            ({"STATEMGR_DISK_DIRECTORY": "/var/states"}, "memory"),
        ],
    )
    def test_a_mode_that_is_given_wins_and_a_redis_url_asks_for_redis(
        self, environ: dict[str, str], mode: str
    ) -> None:
        assert Settings.from_env(environ).mode == mode


class TestRefusals:
    @pytest.mark.parametrize(("name", "text"), BAD)
    def test_a_bad_value_is_one_error_with_all_one_needs(self, name: str, text: str) -> None:
        """The variable, its value and what is allowed, in the message and as attributes."""
        variable = variable_of(name)
        with pytest.raises(SettingsError) as caught:
            Settings.from_env({variable: text})
        error = caught.value
        assert error.variable == variable
        assert error.allowed
        assert error.allowed in str(error)
        assert str(error).startswith(f"{variable}=")
        shown = str(error).removeprefix(f"{variable}=").partition(": expected")[0]
        assert shown.strip("'") == text or float(shown) == pytest.approx(float(text), nan_ok=True)

    @pytest.mark.parametrize("name", ["lock_warning_threshold", "oplock_hold_time"])
    @pytest.mark.parametrize("number", ["10", "11"])
    def test_a_time_not_below_the_lock_expiration_is_refused(self, name: str, number: str) -> None:
        with pytest.raises(SettingsError) as caught:
            Settings.from_env({variable_of(name): number, "STATEMGR_LOCK_EXPIRATION": "10"})
        assert caught.value.variable == variable_of(name)
        assert f"{variable_of(name)}={float(number)}" in str(caught.value)
        assert "below STATEMGR_LOCK_EXPIRATION=10.0" in str(caught.value)

    @pytest.mark.parametrize("number", ["0.5", "1"])
    def test_a_lock_expiration_that_a_default_is_not_below_is_blamed_itself(
        self, number: str
    ) -> None:
        """Nobody has set the other one: the message says so."""
        with pytest.raises(SettingsError) as caught:
            Settings.from_env({"STATEMGR_LOCK_EXPIRATION": number})
        assert caught.value.variable == "STATEMGR_LOCK_EXPIRATION"
        assert str(caught.value) == (
            f"STATEMGR_LOCK_EXPIRATION={float(number)}: expected a number of seconds above "
            "STATEMGR_LOCK_WARNING_THRESHOLD=1.0 (its default)"
        )

    def test_the_defaults_that_a_lock_expiration_collides_with_can_be_lowered(self) -> None:
        environ = {"STATEMGR_LOCK_EXPIRATION": "1", "STATEMGR_LOCK_WARNING_THRESHOLD": "0.5"}
        with pytest.raises(SettingsError, match=r"above STATEMGR_OPLOCK_HOLD_TIME=1\.0 \(its"):
            Settings.from_env(environ)
        environ["STATEMGR_OPLOCK_HOLD_TIME"] = "0.5"
        assert Settings.from_env(environ).lock_expiration == 1.0

    def test_a_time_that_is_above_the_default_lock_expiration_is_told_that(self) -> None:
        with pytest.raises(
            SettingsError,
            match=r"HOLD_TIME=11\.0: .* STATEMGR_LOCK_EXPIRATION=10\.0 \(its default\)",
        ):
            Settings.from_env({"STATEMGR_OPLOCK_HOLD_TIME": "11"})

    def test_redis_without_a_url_is_told_that_none_is_set(self) -> None:
        with pytest.raises(SettingsError, match=r"^STATEMGR_REDIS_URL is not set: ") as caught:
            statemgr.StateManager.create(Settings(mode="redis"))
        assert caught.value.variable == "STATEMGR_REDIS_URL"

    def test_a_bad_directory_is_named_as_it_was_set(self, tmp_path: Path) -> None:
        """By its variable in `Settings`, by the parameter on a manager that is made by hand."""
        open_to_all = tmp_path / "open"
        open_to_all.mkdir()
        open_to_all.chmod(0o777)
        environ = {"STATEMGR_MODE": "disk", "STATEMGR_DISK_DIRECTORY": str(open_to_all)}
        with pytest.raises(SettingsError, match=r"^STATEMGR_DISK_DIRECTORY='.*/open': ") as caught:
            statemgr.StateManager.create(Settings.from_env(environ))
        assert caught.value.variable == "STATEMGR_DISK_DIRECTORY"
        assert caught.value.allowed in str(caught.value)
        with pytest.raises(SettingsError, match=r"^disk_directory='.*/open': "):
            statemgr.StateManagerDisk(open_to_all)

    @pytest.mark.parametrize(("first", "then", "whose"), [(0, 1, "this"), (1, 0, "that")])
    async def test_a_directory_in_use_is_told_with_the_setting_to_change(
        self, tmp_path: Path, first: int, then: int, whose: str
    ) -> None:
        environ = {"STATEMGR_MODE": "disk", "STATEMGR_DISK_DIRECTORY": str(tmp_path)}
        switch = "STATEMGR_DISK_EXCLUSIVE"
        message = rf"{whose} one claims it alone by {switch} \(exclusive=True\)"
        async with statemgr.StateManager.create(Settings.from_env(environ | {switch: str(first)})):
            with pytest.raises(StateDirectoryInUseError, match=message):
                statemgr.StateManager.create(Settings.from_env(environ | {switch: str(then)}))

    def test_a_debounce_needs_the_directory_for_itself(self) -> None:
        with pytest.raises(SettingsError, match=r"STATEMGR_DISK_DEBOUNCE=0\.5.*DISK_EXCLUSIVE"):
            Settings.from_env({"STATEMGR_DISK_DEBOUNCE": "0.5"})
        environ = {"STATEMGR_DISK_DEBOUNCE": "0.5", "STATEMGR_DISK_EXCLUSIVE": "1"}
        assert Settings.from_env(environ).disk_debounce == 0.5

    def test_a_misspelt_variable_is_refused_with_the_likely_one(self) -> None:
        with pytest.raises(SettingsError, match="did you mean STATEMGR_REDIS_URL") as caught:
            Settings.from_env({"STATEMGR_REDIS_ULR": f"redis://u:{SECRET}@h"})
        assert caught.value.variable == "STATEMGR_REDIS_ULR"
        assert SECRET not in str(caught.value)

    def test_a_variable_like_none_of_ours_is_refused_with_all_of_them(self) -> None:
        with pytest.raises(SettingsError, match="STATEMGR_MODE, ") as caught:
            Settings.from_env({"STATEMGR_ZZZZZZZZZZZZZZZZZZZZZZZZZ": "1"})
        for name in OPTIONS:
            assert variable_of(name) in str(caught.value)


# As a container sees a service, or a container that is linked to it, with two ports.
OF_CONTAINERS = {
    "SERVICE_HOST": "10.0.0.11",
    "SERVICE_PORT": "6379",
    "SERVICE_PORT_HTTP": "8080",
    "SERVICE_PORT_HTTP_2": "8081",
    "PORT": "tcp://10.0.0.11:6379",
    "PORT_6379_TCP": "tcp://10.0.0.11:6379",
    "PORT_6379_TCP_PROTO": "tcp",
    "PORT_6379_TCP_PORT": "6379",
    "PORT_6379_TCP_ADDR": "10.0.0.11",
    "PORT_53_UDP": "udp://10.0.0.11:53",
    "PORT_9899_SCTP_ADDR": "fd00::11",
    "PORT_6379_TCP_START": "tcp://10.0.0.11:6379",
    "PORT_6379_TCP_END": "tcp://10.0.0.11:6381",
    "PORT_6379_TCP_PORT_START": "6379",
    "PORT_6379_TCP_PORT_END": "6381",
    "NAME": "/web/statemgr",
    "ENV_LANG": "C.UTF-8",
    "ENV_http_proxy": "",
}


class TestContainers:
    @pytest.mark.parametrize("service", ["STATEMGR", "STATEMGR_REDIS", "STATEMGR_2"])
    def test_what_is_told_of_a_service_of_our_name_is_left_alone(self, service: str) -> None:
        """Kubernetes puts it into each pod of the namespace, and no setting is in it."""
        environ = {f"{service}_{name}": value for name, value in OF_CONTAINERS.items()}
        assert Settings.from_env(environ) == Settings()
        assert Settings.from_env(environ | {"STATEMGR_MODE": "disk"}).mode == "disk"

    @pytest.mark.parametrize(
        ("variable", "value"),
        [
            ("STATEMGR_PORT", "6379"),
            ("STATEMGR_REDIS_PORT", "6379"),
            ("STATEMGR_NAME", "app"),
            ("STATEMGR_HOST", "10.0.0.11"),
            ("STATEMGR_SERVICE", "10.0.0.11"),
            ("STATEMGR_SERVICE_PORTS", "6379"),
            ("STATEMGR_SERVICE_HOSTNAME", "h"),
            ("STATEMGR_PORT_6379", "6379"),
            ("STATEMGR_PORT_6379_TCP_HOST", "10.0.0.11"),
            ("STATEMGR_PORT_6379_HTTP", "tcp://10.0.0.11:6379"),
        ],
    )
    def test_what_only_looks_like_it_is_refused(self, variable: str, value: str) -> None:
        """Somebody has set it, and meant something by it."""
        with pytest.raises(SettingsError) as caught:
            Settings.from_env({variable: value})
        assert caught.value.variable == variable

    @pytest.mark.parametrize("name", READ)
    def test_no_setting_is_taken_for_it(self, name: str) -> None:
        variable, text, _ = READ[name]
        for value in (text, "tcp://h", "/h", "1"):
            assert not _OF_CONTAINERS.match(f"{variable}={value}")


class TestSecrets:
    URL = f"redis+sentinel://user:{SECRET}@h1:1,h2:2/svc/0"

    def test_a_repr_shows_no_secret(self) -> None:
        settings = Settings(
            redis_url=self.URL, encryption_keys=(bytes.fromhex(HEX_KEY),), log_key=SECRET
        )
        for text in (repr(settings), str(settings), f"{settings}"):
            assert SECRET not in text
            assert HEX_KEY not in text
            assert "\\xab" not in text

    @pytest.mark.parametrize(
        "text", [HEX_KEY[:-1], f"{HEX_KEY};{OTHER_HEX_KEY}", HEX_KEY[:-2], f"{HEX_KEY},", "zz"]
    )
    def test_a_bad_key_is_not_shown(self, text: str) -> None:
        with pytest.raises(SettingsError, match="64 hexadecimal digits") as caught:
            Settings.from_env({"STATEMGR_ENCRYPTION_KEYS": text})
        assert text not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None

    @pytest.mark.parametrize(
        "arguments",
        [
            {"log_key": SECRET.encode()},
            {"encryption_keys": (SECRET.encode(),)},
            {"encryption_keys": [SECRET.encode() * 5]},
            {"redis_url": f"redis://u:{SECRET}@h".encode()},
        ],
    )
    def test_a_secret_of_the_wrong_type_is_not_shown(self, arguments: dict[str, Any]) -> None:
        (name,) = arguments
        with pytest.raises(SettingsError) as caught:
            Settings(**arguments)
        assert caught.value.variable == variable_of(name)
        assert SECRET not in str(caught.value)

    def test_a_log_key_that_is_no_text_for_a_digest_is_refused(self) -> None:
        """Bytes of the environment that are not UTF-8 come as lone surrogates."""
        with pytest.raises(SettingsError):
            statemgr.StateManagerMemory.create(Settings(log_key="k\udcff"))


class TestFromCode:
    def test_settings_can_be_made_without_an_environment(self) -> None:
        settings = Settings(mode="memory", token_expiration=5, disk_exclusive=True)
        assert (settings.token_expiration, settings.disk_exclusive) == (5, True)
        assert dataclasses.replace(settings, token_expiration=6.0).token_expiration == 6.0

    def test_a_path_and_a_list_of_keys_are_as_good_as_a_str_and_a_tuple(self) -> None:
        key = bytes.fromhex(HEX_KEY)
        settings = Settings(disk_directory=Path("/var/states"), encryption_keys=[key])
        assert settings == Settings(disk_directory="/var/states", encryption_keys=(key,))
        assert hash(settings) == hash(
            Settings(disk_directory="/var/states", encryption_keys=(key,))
        )
        assert type(settings.disk_directory) is str

    def test_settings_are_frozen_equal_by_value_and_can_be_pickled(self) -> None:
        settings = Settings(redis_url="redis://h", token_expiration=5.0)
        assert settings == Settings(redis_url="redis://h", token_expiration=5.0)
        assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301  # made here
        assert hash(settings) == hash(Settings(redis_url="redis://h", token_expiration=5.0))
        with pytest.raises(dataclasses.FrozenInstanceError):
            settings.mode = "disk"  # type: ignore[misc]

    @pytest.mark.parametrize(
        "arguments",
        [
            {"token_expiration": 0},
            {"token_expiration": "60"},
            {"token_expiration": None},
            {"token_expiration": True},
            {"token_expiration": 10**400},
            {"lock_warning_threshold": True},
            {"disk_debounce": False},
            {"max_state_size": 1.0},
            {"max_state_size": 16.0 * 2**20},
            {"max_state_size": True},
            {"compress_above": "1"},
            {"disk_fsync": 1},
            {"disk_fsync": 0},
            {"memory_rollback": 1},
            {"log_idents": "no"},
            {"mode": None},
            {"mode": 5},
            {"key_prefix": ""},
            {"disk_directory": ""},
            {"redis_url": ""},
            {"oplock": None},
            {"oplock": ["off"]},
            {"encryption_keys": (b"short",)},
            {"encryption_keys": b"k" * 32},
            {"encryption_keys": b""},
            {"encryption_keys": None},
            {"disk_directory": b"states"},
            {"disk_directory": None},
        ],
        ids=repr,
    )
    def test_a_value_of_the_wrong_kind_is_refused(self, arguments: dict[str, Any]) -> None:
        """Also one that equals the default, such as True for 1.0."""
        (name,) = arguments
        with pytest.raises(SettingsError) as caught:
            Settings(**arguments)
        assert caught.value.variable == variable_of(name)

    def test_only_settings_reads_the_environment(self) -> None:
        """No other module of the package asks `os` for a variable, in any spelling."""
        package = Path(statemgr.__file__).parent
        readers = {
            str(path.relative_to(package))
            for path in package.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text()))
            if (
                isinstance(node, ast.Attribute)
                and node.attr in {"environ", "environb", "getenv", "getenvb"}
            )
            or (
                isinstance(node, ast.ImportFrom)
                and node.module == "os"
                and {"environ", "environb", "getenv"} & {alias.name for alias in node.names}
            )
        }
        assert readers == {"settings.py"}
