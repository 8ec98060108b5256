"""Logs tell idents apart without telling them, and never show a password."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from statemgr.redaction import Redaction, redact_url

SECRET = "hunter2"


class TestIdents:
    def test_a_digest_is_short_and_the_same_each_time(self) -> None:
        redaction = Redaction()
        assert re.fullmatch(r"ident #[0-9a-f]{8}", redaction.ident("user-42"))
        assert redaction.ident("user-42") == redaction.ident("user-42")
        assert redaction.ident("user-42") != redaction.ident("user-43")

    def test_one_key_gives_one_digest(self) -> None:
        """So that workers with one key can compare their logs."""
        assert Redaction(key=b"k").ident("u") == Redaction(key=b"k").ident("u")

    def test_another_key_gives_another_digest(self) -> None:
        assert Redaction(key=b"k").ident("u") != Redaction(key=b"l").ident("u")

    @pytest.mark.parametrize("key", [None, b""])
    def test_without_a_key_each_manager_draws_its_own(self, key: bytes | None) -> None:
        """A guessed ident cannot be confirmed from a log. An empty key is none."""
        assert Redaction(key=key).ident("u") != Redaction(key=key).ident("u")

    def test_a_key_may_be_longer_than_blake2_takes(self) -> None:
        assert Redaction(key=b"k" * 100).ident("u") != Redaction(key=b"k" * 101).ident("u")

    def test_a_state_is_named_by_its_class_and_its_idents_digest(self) -> None:
        redaction = Redaction()
        assert redaction.state("u/app:Cart") == f"app:Cart of {redaction.ident('u')}"

    def test_idents_are_shown_to_who_asks(self) -> None:
        redaction = Redaction(show_idents=True)
        assert redaction.ident("u%2F1") == "ident 'u%2F1'"
        assert redaction.state("u%2F1/app:Cart") == "app:Cart of ident 'u%2F1'"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://user:hunter2@host:6379/0", "redis://user:***@host:6379/0"),
            ("redis://:hunter2@host", "redis://:***@host"),
            ("rediss://user:hunter2@[::1]:6379/0", "rediss://user:***@[::1]:6379/0"),
            ("unix://user:hunter2@/run/redis.sock?db=1", "unix://user:***@/run/redis.sock?db=1"),
            (
                "redis+sentinel://user:hunter2@h1:1,h2:2/svc/0",
                "redis+sentinel://user:***@h1:1,h2:2/svc/0",
            ),
            ("rediss+cluster://user:hunter2@h1:1,h2:2", "rediss+cluster://user:***@h1:1,h2:2"),
        ],
    )
    def test_the_password_of_a_url_is_left_out_and_the_rest_stays(
        self, url: str, shown: str
    ) -> None:
        assert redact_url(url) == shown

    @pytest.mark.parametrize(
        "url",
        [
            "redis://host:6379/0",
            "redis://user@host/0",
            "unix:///run/redis.sock?db=1",
            "redis+sentinel://h1:1,h2:2/svc/0",
            "redis+cluster://[::1]:1,[::2]:2",
            "",
            "/run/redis.sock",
        ],
    )
    def test_a_url_without_a_password_is_shown_as_it_is(self, url: str) -> None:
        assert redact_url(url) == url

    @pytest.mark.parametrize(
        "odd", ["@", ":", "/", "?", "#", "%", "[", "]", "&", "=", " ", "\n", "//"]
    )
    def test_an_odd_character_in_the_password_does_not_show_the_rest(self, odd: str) -> None:
        """Raw, as people paste it, and percent-encoded, as it should be."""
        quoted = "".join(f"%{ord(c):02X}" for c in odd)
        for host in ("h", "h1:1,h2:2/svc/0", "[::1]:6379/0?db=1"):
            for prefix in ("redis://user:", "redis://:", "redis+sentinel://user:"):
                for between in (odd, quoted):
                    assert SECRET not in redact_url(f"{prefix}{SECRET}{between}{SECRET}@{host}")
                    assert SECRET not in redact_url(f"{prefix}{between}{SECRET}@{host}")

    @pytest.mark.parametrize(
        "url",
        [
            f"redis://host/0?password={SECRET}",
            f"redis://host/0?db=1&password={SECRET}&username=u",
            f"redis+sentinel://u:x@h1:1,h2:2/svc/0?sentinel_password={SECRET}",
            f"unix:///run/redis.sock?password={SECRET}",
        ],
    )
    def test_a_password_in_the_query_is_left_out(self, url: str) -> None:
        """redis-py takes every argument of a connection from the query, the password too."""
        assert SECRET not in redact_url(url)

    @pytest.mark.parametrize(
        "url",
        [
            f"user:{SECRET}@host:6379",
            f"redis:user:{SECRET}@host",
            f"redis:/user:{SECRET}@host",
            f"redis//user:{SECRET}@host",
            f"redis://user:{SECRET}@[::1",
            f"redis://user:{SECRET}@host:port:7",
            f"://user:{SECRET}@host",
            f" redis://user:{SECRET}@host",
        ],
    )
    def test_a_malformed_url_shows_no_password(self, url: str) -> None:
        assert SECRET not in redact_url(url)

    @settings(deadline=None)
    @given(
        scheme=st.sampled_from(["redis", "rediss", "redis+sentinel", "rediss+cluster", "unix"]),
        user=st.sampled_from(["", "user", "us%40er"]),
        before=st.text(max_size=5),
        after=st.text(max_size=5),
        hosts=st.sampled_from(["h", "h:1", "h1:1,h2:2/svc/0", "[::1]:2/3", "/run/r.sock"]),
    )
    def test_no_password_is_ever_shown(
        self, scheme: str, user: str, before: str, after: str, hosts: str
    ) -> None:
        """Whatever surrounds the part of it that a reader would know it by."""
        assert SECRET not in redact_url(f"{scheme}://{user}:{before}{SECRET}{after}@{hosts}")
