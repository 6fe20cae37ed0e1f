"""Reading the settings: what is taken, and what is refused with which words."""

from __future__ import annotations

import math
from typing import Any

import pytest
from celery import Celery

from celery_canceltoken.errors import SettingsError
from celery_canceltoken.settings import SETTING_PREFIX, Settings

DURATIONS = [
    "check_interval",
    "heartbeat_interval",
    "lease_duration",
    "store_timeout",
    "record_expires",
    "request_expires",
]


def test_defaults() -> None:
    """Without a setting the documented defaults hold."""
    assert Settings.from_mapping({}) == Settings(
        redis_url=None,
        prefix="canceltoken",
        check_interval=5.0,
        heartbeat_interval=5.0,
        lease_duration=30.0,
        store_timeout=0.5,
        record_expires=24 * 3600.0,
        request_expires=30 * 24 * 3600.0,
        terminate_grace=5.0,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", "redis://elsewhere/3"),
        ("prefix", "shop"),
        ("check_interval", 0.25),
        ("heartbeat_interval", 2),
        ("lease_duration", 11),
        ("store_timeout", 0.1),
        ("record_expires", 60),
        ("request_expires", 3600),
        ("terminate_grace", 0),
        ("terminate_grace", 0.5),
    ],
)
def test_a_setting_is_taken(name: str, value: Any) -> None:
    """Each setting has its place."""
    settings = Settings.from_mapping({SETTING_PREFIX + name: value})
    assert getattr(settings, name) == value
    assert vars(settings) == {**vars(Settings()), name: value}


def test_foreign_settings_are_not_looked_at() -> None:
    """Celery's and other people's settings are none of our business, whatever their values."""
    foreign = {"broker_url": object(), "canceltokens": 1, "token_prefix": None, "task_always_eager": True}
    assert Settings.from_mapping(foreign) == Settings()


@pytest.mark.parametrize("name", DURATIONS)
@pytest.mark.parametrize(
    "value",
    ["5", None, True, [5], 0, -1, 0.0, -0.5, math.inf, -math.inf, math.nan],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_a_bad_duration_is_refused(name: str, value: Any) -> None:
    """What is no finite number of seconds above 0 is an error with the setting's name and its range."""
    setting = SETTING_PREFIX + name
    with pytest.raises(SettingsError, match=r"must be a (finite )?number of seconds") as told:
        Settings.from_mapping({setting: value})
    assert told.value.setting == setting
    assert str(told.value).startswith(f"{setting}: ")
    assert repr(value) in str(told.value)


@pytest.mark.parametrize("value", ["5", None, True, False, [5], -1, -0.5, math.inf, math.nan], ids=repr)
def test_a_bad_grace_is_refused(value: Any) -> None:
    """The grace may be 0, but is a number of seconds like the others."""
    with pytest.raises(SettingsError, match="canceltoken_terminate_grace: must be a number of seconds"):
        Settings.from_mapping({"canceltoken_terminate_grace": value})


@pytest.mark.parametrize("value", ["", "  ", 5, b"redis://localhost", ["redis://localhost"]], ids=repr)
def test_a_url_that_is_no_text_is_refused(value: Any) -> None:
    """A store's address is a non-empty string."""
    with pytest.raises(SettingsError, match="canceltoken_redis_url: must be a non-empty string"):
        Settings.from_mapping({"canceltoken_redis_url": value})


def test_a_url_of_none_is_none() -> None:
    """An app may say outright that the URL is to be borrowed."""
    assert Settings.from_mapping({"canceltoken_redis_url": None}).redis_url is None


@pytest.mark.parametrize("value", ["", " ", None, 7, "a\nb", "a\0b", "{shop}", "a}", "x" * 101], ids=repr)
def test_a_bad_prefix_is_refused(value: Any) -> None:
    """A prefix that would make unusable key names is an error with the setting's name."""
    with pytest.raises(SettingsError, match=r"canceltoken_prefix: must be ") as told:
        Settings.from_mapping({"canceltoken_prefix": value})
    assert told.value.setting == "canceltoken_prefix"


@pytest.mark.parametrize("value", ["x" * 100, "shop:eu", "Prüfung", "a b"])
def test_a_printable_prefix_is_taken(value: str) -> None:
    """A prefix may be anything that can be read in a key name."""
    assert Settings.from_mapping({"canceltoken_prefix": value}).prefix == value


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    """A setting that does not exist is an error which lists those that do."""
    with pytest.raises(SettingsError, match="there is no such setting") as told:
        Settings.from_mapping({"canceltoken_colour": "red"})
    assert told.value.setting == "canceltoken_colour"
    for name in vars(Settings()):
        assert SETTING_PREFIX + name in str(told.value)


def test_a_misspelt_name_is_guessed() -> None:
    """A slip of the pen is answered with the name that was meant."""
    with pytest.raises(SettingsError, match=r"did you mean canceltoken_check_interval\?"):
        Settings.from_mapping({"canceltoken_check_intervall": 5})


def test_a_far_off_name_is_not_guessed() -> None:
    """No suggestion is better than a wild one."""
    with pytest.raises(SettingsError) as told:
        Settings.from_mapping({"canceltoken_zzz": 5})
    assert "did you mean" not in str(told.value)


def test_an_unknown_name_is_refused_even_with_a_harmless_value() -> None:
    """What is misspelt is told although its value says nothing."""
    with pytest.raises(SettingsError):
        Settings.from_mapping({"canceltoken_redis_urll": None})


@pytest.mark.parametrize(
    "name", ["CELERY_CANCELTOKEN_PREFIX", "CANCELTOKEN_PREFIX", "shop_canceltoken_prefix"]
)
def test_a_namespaced_name_is_taken(name: str) -> None:
    """A namespace before the name, and capitals, are as good as the plain name."""
    assert Settings.from_mapping({name: "shop"}).prefix == "shop"


def test_a_bad_value_is_told_under_the_name_it_was_given() -> None:
    """With a namespace the error names the setting as its author wrote it."""
    with pytest.raises(SettingsError) as told:
        Settings.from_mapping({"CELERY_CANCELTOKEN_STORE_TIMEOUT": "soon"})
    assert told.value.setting == "CELERY_CANCELTOKEN_STORE_TIMEOUT"


def test_settings_of_a_celery_app_are_read() -> None:
    """What `app.conf` holds counts."""
    app = Celery("shop", set_as_current=False)
    app.conf.update(canceltoken_prefix="shop", canceltoken_store_timeout=0.2)
    assert Settings.from_mapping(app.conf) == Settings(prefix="shop", store_timeout=0.2)


def test_settings_of_a_celery_app_with_a_namespace_are_read() -> None:
    """Django's way, one object and the prefix CELERY_, works as well."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object(
        {"CELERY_CANCELTOKEN_PREFIX": "shop", "CELERY_TASK_ALWAYS_EAGER": True, "DEBUG": True},
        namespace="CELERY",
    )
    assert Settings.from_mapping(app.conf).prefix == "shop"


def test_a_misspelt_setting_of_a_namespaced_app_is_refused() -> None:
    """A namespace hides no mistake."""
    app = Celery("shop", set_as_current=False)
    app.config_from_object({"CELERY_CANCELTOKEN_PREFIXX": "shop"}, namespace="CELERY")
    with pytest.raises(SettingsError, match=r"did you mean canceltoken_prefix\?"):
        Settings.from_mapping(app.conf)


@pytest.mark.parametrize(("lease", "heartbeat"), [(9.9, 5), (1, 5), (30, 16)])
def test_a_lease_shorter_than_two_heartbeats_is_refused(lease: float, heartbeat: float) -> None:
    """One lost heartbeat must not cost a worker its tasks, and the error says what to change."""
    with pytest.raises(SettingsError, match="raise it, or lower canceltoken_heartbeat_interval") as told:
        Settings.from_mapping(
            {"canceltoken_lease_duration": lease, "canceltoken_heartbeat_interval": heartbeat}
        )
    assert told.value.setting == "canceltoken_lease_duration"


def test_a_lease_of_two_heartbeats_is_enough() -> None:
    """The limit itself is allowed."""
    settings = Settings.from_mapping({"canceltoken_lease_duration": 10, "canceltoken_heartbeat_interval": 5})
    assert settings.lease_duration == 2 * settings.heartbeat_interval


def test_a_settings_error_is_a_value_error() -> None:
    """Whoever catches ValueError at start catches this as well."""
    with pytest.raises(ValueError, match="canceltoken_colour"):
        Settings.from_mapping({"canceltoken_colour": 1})


@pytest.mark.parametrize("name", ["record_expires", "request_expires", "lease_duration", "check_interval"])
def test_a_duration_beyond_the_server_is_refused(name: str) -> None:
    """A number of seconds that the store cannot keep is an error at start, not at each task."""
    with pytest.raises(SettingsError):
        Settings.from_mapping({f"canceltoken_{name}": 1e300})


@pytest.mark.parametrize("name", ["record_expires", "request_expires"])
def test_a_duration_below_the_servers_clock_is_refused(name: str) -> None:
    """A record that would be gone before it can be read is an error at start."""
    with pytest.raises(SettingsError):
        Settings.from_mapping({f"canceltoken_{name}": 0.0004})


@pytest.mark.parametrize("policy", ["until_success", "always", "never"])
def test_a_message_is_kept_as_one_of_three_policies_says(policy: str) -> None:
    """Each is taken by its name."""
    assert Settings.from_mapping({"canceltoken_keep_message": policy}).keep_message == policy


@pytest.mark.parametrize("value", ["until-success", "ALWAYS", "", None, True, ["always"], 0], ids=repr)
def test_a_bad_policy_is_refused(value: Any) -> None:
    """With the names of those there are."""
    with pytest.raises(SettingsError, match="must be one of until_success, always, never, not ") as told:
        Settings.from_mapping({"canceltoken_keep_message": value})
    assert told.value.setting == "canceltoken_keep_message"


@pytest.mark.parametrize("limit", [0, 1, 10**9])
def test_a_limit_is_a_number_of_bytes(limit: int) -> None:
    """0 keeps nothing."""
    assert Settings.from_mapping({"canceltoken_message_limit": limit}).message_limit == limit


@pytest.mark.parametrize("value", [-1, 1.5, "64k", None, True, math.inf], ids=repr)
def test_a_bad_limit_is_refused(value: Any) -> None:
    """What is no whole number of bytes is an error with the setting's name."""
    with pytest.raises(SettingsError, match="must be a number of bytes, 0 or more, not ") as told:
        Settings.from_mapping({"canceltoken_message_limit": value})
    assert told.value.setting == "canceltoken_message_limit"


@pytest.mark.parametrize("value", [True, False])
def test_tracking_is_on_or_off(value: bool) -> None:
    """A flag is a flag."""
    assert Settings.from_mapping({"canceltoken_track_enqueued": value}).track_enqueued is value


@pytest.mark.parametrize("value", ["yes", 1, 0, None, []], ids=repr)
def test_a_bad_flag_is_refused(value: Any) -> None:
    """What is neither true nor false is an error with the setting's name."""
    with pytest.raises(SettingsError, match="must be True or False, not ") as told:
        Settings.from_mapping({"canceltoken_track_enqueued": value})
    assert told.value.setting == "canceltoken_track_enqueued"
