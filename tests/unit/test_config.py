"""core/config.py: sources and their order, ranges, and refusals that say what to do."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from goclaw.core import config, limits
from goclaw.core.config import Address, Config, ListenConfig, load, parse_address
from goclaw.core.errors import ConfigRefused, GoclawError, UsageError

if TYPE_CHECKING:
    from pathlib import Path


def write(home: Path, text: str | bytes) -> Path:
    (home / "config.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return home


def refusal(home: Path, environ: dict[str, str] | None = None, **options: str) -> GoclawError:
    named = {name.replace("__", "."): value for name, value in options.items()}
    with pytest.raises(GoclawError) as caught:
        load(home, environ or {}, named)
    assert caught.value.hint
    assert "\n" not in str(caught.value)
    return caught.value


def test_without_a_file_the_defaults_of_the_contract_hold(home: Path) -> None:
    settings = load(home, {})
    assert settings == Config()
    assert dataclasses.asdict(settings) == {
        "queue": {
            "lanes": 4,
            "lease_ms": 30_000,
            "max_attempts": 5,
            "crash_budget": 3,
            "poison": 3,
            "backoff_ms_min": 1_000,
            "backoff_ms_max": 300_000,
            "session_limit": 1_000,
            "total_limit": 1_000_000,
            "aging_factor": limits.AGING_FACTOR,
            "reserved_lanes": 0,
            "interactive_weight": 1,
            "bounds": "none",
            "idempotency_window_s": 7 * 24 * 3600,
        },
        "events": {
            "retention_s": 30 * 24 * 3600,
            "ring_bytes": 256 * 1024,
            "ring_bytes_total": 64 * 1024 * 1024,
        },
        "acp": {"on_disconnect": "continue"},
        "store": {"synchronous": "full"},
        "listen": {
            "address": "127.0.0.1:0",
            "beyond_loopback": "no",
            "tls_certificate": "none",
            "tls_key": "none",
            "names": "none",
        },
        "daemon": {"drain_s": 30, "idle_exit_s": 600},
        "brain": {"default": "direct"},
        "brains": (),
    }


def test_settings_cannot_be_changed_after_the_load() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().queue.lanes = 5  # type: ignore[misc]


def test_file_then_environment_then_option(home: Path) -> None:
    write(home, "[queue]\nlanes = 2\nlease_ms = 500\npoison = 9\n[brain]\ndefault = 'script:a'\n")
    environ = {"GOCLAW_QUEUE_LANES": " 3 ", "GOCLAW_QUEUE_LEASE_MS": "700", "PATH": "x"}
    settings = load(home, environ, {"queue.lanes": "8"})
    assert (settings.queue.lanes, settings.queue.lease_ms, settings.queue.poison) == (8, 700, 9)
    assert settings.brain.default == "script:a"


@pytest.mark.req("B-2")
def test_a_brain_of_the_file(home: Path) -> None:
    text = """[brains.local]
kind = "openai"
base_url = "http://127.0.0.1:1/v1"
model = "m"
run_cost = 2
"""
    (brain,) = load(write(home, text), {}).brains
    assert (brain.name, brain.kind, brain.run_cost) == ("local", "openai", 2.0)
    assert brain.context_tokens == 32_768
    (brain,) = load(write(home, text + 'key = "secret:mine"\n'), {}).brains
    assert brain.secret == "mine"


@pytest.mark.req("A-5")
@pytest.mark.parametrize("lines", ["key = 'sk-1234'", "key = 'secret:a'\nkey_env = 'K'"])
def test_a_key_does_not_stand_in_the_file(home: Path, lines: str) -> None:
    text = f"[brains.a]\nkind = 'openai'\nbase_url = 'http://a/v1'\nmodel = 'm'\n{lines}"
    with pytest.raises(ConfigRefused, match="no reference to a secret") as refused:
        load(write(home, text), {})
    assert "sk-1234" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[brains.a]\nmodel = 'm'", "[brains.a] has no kind."),
        ("[brains.a]\nkind = 'openai'\nmodel = 'm'", "[brains.a] has no base_url."),
        ("[brains.a]\nkind = 'llama'", "kind = 'llama' is not allowed."),
        ("[brains.a]\nkind = 'acp'\ncomand = 'x'", "comand is unknown. Did you mean command?"),
        ("[brains.direct]\nkind = 'openai'", "[brains.direct] is no name for a brain."),
        ("[brains.'a b']\nkind = 'openai'", "[brains.a b] is no name for a brain."),
        ("[brains.a]\nrun_cost = -1", "run_cost takes a number from 0 to"),
        ("[brains.a]\nrun_cost = nan", "run_cost takes a number from 0 to"),
        ("[brains.a]\nrun_steps = true", "run_steps = True is not allowed"),
        ("[brains.a]\nkind = 'cassette'\ncassette = 'a'", "cassette = 'a' is no absolute path"),
        ("[brains]\na = 1", "[brains.a] is not a section."),
        ("brains = 1", "brains is not a table"),
    ],
)
def test_a_brain_that_is_refused(home: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigRefused) as refused:
        load(write(home, text), {})
    assert says in str(refused.value)


@pytest.mark.req("U-5")
def test_the_template_is_the_defaults_in_comments(home: Path) -> None:
    defaults = dataclasses.asdict(Config())
    assert defaults.pop("brains") == ()
    assert tomllib.loads(config.TEMPLATE) == {section: {} for section in defaults}
    assert load(write(home, config.TEMPLATE), {}) == Config()
    bare = "\n".join(
        line.removeprefix("#") if line.startswith("#") and line[1:2].isalpha() else line
        for line in config.TEMPLATE.splitlines()
    )
    given_values = tomllib.loads(bare)
    assert given_values == defaults
    assert load(write(home, bare), {}) == Config()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[queue]\nlaness = 4", "[queue] laness is unknown. Did you mean lanes?"),
        ("[qeue]\nlanes = 4", "[qeue] is unknown. Did you mean queue?"),
        ("lanes = 4", "[lanes] is unknown."),
        ("queue = 4", "queue is not a section. Write [queue]"),
        ("[[queue]]\nlanes = 4", "queue is not a section."),
        (
            "[queue]\nlanes = 0",
            "lanes = 0 is not allowed. queue.lanes takes a whole number from 1 to",
        ),
        ("[queue]\nlanes = 1025", "from 1 to 1024; the default is 4."),
        ("[queue]\nlanes = true", "lanes = True is not allowed"),
        ("[queue]\nlanes = 4.0", "lanes = 4.0 is not allowed"),
        ("[queue]\nlanes = '4'", "lanes = '4' is not allowed"),
        ("[queue]\nlease_ms = -1", "lease_ms = -1 is not allowed"),
        ("[acp]\non_disconnect = 'stop'", 'acp.on_disconnect takes "continue" or "cancel"'),
        ("[store]\nsynchronous = 'FULL'", 'store.synchronous takes "full" or "normal"'),
        ("[store]\nsynchronous = 1", "synchronous = 1 is not allowed"),
        ("[brain]\ndefault = ''", "brain.default takes the name of a brain"),
        ('[brain]\ndefault = "a\\u0000b"', "brain.default takes the name of a brain"),
        ("[listen]\nnames = 'a.example, b c'", "b c is no host name"),
        ("[queue]\nbackoff_ms_min = 9\nbackoff_ms_max = 8", "queue.backoff_ms_min = 9 is above"),
        ("[queue\nlanes = 4", "is not valid TOML:"),
        ("[queue]\nlanes = 4\nlanes = 5", "is not valid TOML:"),
        ("[queue]\nlanes = " + "9" * 5000, "is not valid TOML:"),
        ("a = " + "[" * 100_000, "is not valid TOML:"),
        ("\ufeff[queue]", "is not valid TOML:"),
        (b"[brain]\ndefault = '\xff'", "is not UTF-8 text."),
        (b"#" * (limits.CONFIG_BYTES_MAX + 1), "is larger than"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(home: Path, text: str | bytes, says: str) -> None:
    error = refusal(write(home, text))
    assert isinstance(error, ConfigRefused)
    assert error.exit == 3
    assert says in str(error)
    assert str(home / "config.toml") in str(error) or "backoff" in str(error)
    assert len(str(error)) < 500


def test_a_file_that_is_a_directory_is_refused(home: Path) -> None:
    (home / "config.toml").mkdir()
    assert "cannot be read" in str(refusal(home))


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("GOCLAW_QUEUE_LANES", "0", "GOCLAW_QUEUE_LANES='0' is not allowed."),
        ("GOCLAW_QUEUE_LANES", "", "GOCLAW_QUEUE_LANES='' is not allowed."),
        ("GOCLAW_QUEUE_LANES", "1_0", "is not allowed"),
        ("GOCLAW_QUEUE_LANES", "+4", "is not allowed"),
        ("GOCLAW_QUEUE_LANES", "٤", "is not allowed"),
        ("GOCLAW_QUEUE_LANES", "9" * 5000, "is not allowed"),
        ("GOCLAW_ACP_ON_DISCONNECT", "no", "is not allowed"),
        ("GOCLAW_QUEUE_LANESS", "4", "Did you mean GOCLAW_QUEUE_LANES?"),
        ("GOCLAW_QEUE_LANES", "4", "Did you mean GOCLAW_QUEUE_LANES?"),
        ("GOCLAW_QUEUE_COLOUR", "red", "environment GOCLAW_QUEUE_COLOUR is unknown."),
    ],
)
def test_a_bad_variable_is_refused(home: Path, variable: str, value: str, says: str) -> None:
    error = refusal(home, {variable: value})
    assert says in str(error)
    assert len(str(error)) < 900


def test_names_of_others_are_left_alone(home: Path) -> None:
    others = dict.fromkeys(config.ENVIRONMENT_OTHER | {"GOCLAW_SOMEBODY_ELSES", "GOCLAWX"}, "1")
    assert load(home, others) == Config()


def test_a_bad_option_is_a_usage_error(home: Path) -> None:
    error = refusal(home, queue__lanes="many")
    assert isinstance(error, UsageError)
    assert error.exit == 2
    assert str(error).startswith("--lanes many is not allowed.")


def test_a_bad_file_is_refused_also_under_an_option(home: Path) -> None:
    assert "lanes = 0" in str(refusal(write(home, "[queue]\nlanes = 0"), queue__lanes="2"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[queue]\nbackoff_ms_max = 20", (20, 20)),
        ("[queue]\nbackoff_ms_min = 400000", (400_000, 400_000)),
        ("[queue]\nbackoff_ms_min = 5\nbackoff_ms_max = 5", (5, 5)),
    ],
)
def test_a_default_gives_way_to_what_was_set(
    home: Path, text: str, expected: tuple[int, int]
) -> None:
    queue = load(write(home, text), {}).queue
    assert (queue.backoff_ms_min, queue.backoff_ms_max) == expected


@pytest.mark.parametrize("row", list(config.settings()), ids=lambda row: row.name)
def test_every_number_takes_its_range_and_nothing_beyond(home: Path, row: config.Setting) -> None:
    if not isinstance(row.default, int):
        return
    assert row.rule.low <= row.default <= row.rule.high
    for value, good in (
        (row.rule.low, True),
        (row.rule.high, True),
        (row.rule.low - 1, False),
        (row.rule.high + 1, False),
    ):
        write(home, f"[{row.section}]\n{row.key} = {value}\n")
        if good:
            environ = {"GOCLAW_QUEUE_LANES": "1024"} if row.name == "queue.reserved_lanes" else {}
            assert getattr(getattr(load(home, environ), row.section), row.key) == value
        else:
            assert row.name in str(refusal(home))


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("127.9.9.9:65535", Address("127.9.9.9", 65535)),
        ("localhost:8080", Address("localhost", 8080)),
        ("[::1]:80", Address("::1", 80)),
        ("[::1%lo]:80", Address("::1%lo", 80)),
        ("", None),
        ("none", None),
    ],
)
def test_a_loopback_address_is_taken(text: str, expected: Address | None) -> None:
    assert parse_address(text) == expected
    assert ListenConfig(text).tcp == expected


@pytest.mark.req("A-9")
@pytest.mark.parametrize(
    "text",
    [
        "example.org:1",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:٤",
        "::1:80",
        "[127.0.0.1:80",
        ":80",
        "127.1:80",
        "0x7f.0.0.1:80",
    ],
)
def test_any_other_address_is_refused(text: str, home: Path) -> None:
    with pytest.raises(ValueError, match=r"^(it is|an IPv6|the port|the host) "):
        parse_address(text)
    assert "listen.address takes" in str(refusal(home, {"GOCLAW_LISTEN_ADDRESS": text}))


@pytest.mark.req("A-9")
@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.168.0.1:1", "[2001:db8::1]:0"])
def test_beyond_this_machine_takes_a_word_and_tls(address: str, home: Path) -> None:
    """Each of the two alone is refused, whichever way it was given."""
    flag = {"listen.address": address, "listen.beyond_loopback": "yes"}
    tls = {"GOCLAW_LISTEN_TLS_CERTIFICATE": "c.pem", "GOCLAW_LISTEN_TLS_KEY": "k.pem"}
    alone = {"listen.address": address}
    half = {"GOCLAW_LISTEN_TLS_KEY": "k.pem"}
    for environ, options, says in (
        ({}, alone, "other machines could connect"),
        ({}, flag, "without TLS its token could be read"),
        (tls, alone, "other machines could connect"),
        ({**tls, "GOCLAW_LISTEN_BEYOND_LOOPBACK": "no"}, alone, "other machines could connect"),
        (half, flag, "listen.tls_key stands alone"),
        (half, {}, "listen.tls_key stands alone"),
    ):
        with pytest.raises(ConfigRefused, match=says):
            load(home, environ, options)
    listen = load(home, {**tls, "GOCLAW_LISTEN_NAMES": "A.example, b"}, flag).listen
    assert listen.tls == ("c.pem", "k.pem")
    assert listen.known_as == ("a.example", "b")
    assert listen.tcp is not None
    assert not listen.tcp.is_loopback
    assert load(home, {}, {"listen.address": "127.0.0.1:0"}).listen.tls is None


@pytest.mark.req("A-14")
@given(data=st.binary(max_size=200))
@example(data=b"[queue]\nlanes = 1979-05-27")
@example(data=b'[queue]\n"lanes" = inf')
@example(data=b"[queue.lanes]")
def test_any_bytes_are_taken_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    write(folder, data)
    try:
        load(folder, {})
    except ConfigRefused as error:
        assert error.hint  # noqa: PT017
    finally:
        os.unlink(folder / "config.toml")


@pytest.mark.req("Q-16")
def test_bounds_are_read_by_kind_of_work(home: Path) -> None:
    text = "tool:fetch 2 at once, 30/min; pool:mail 100/h ;brain:openai 1 at once"
    assert load(home, {"GOCLAW_QUEUE_BOUNDS": text}).queue.gates == {
        "tool:fetch": config.Gate(2, 30, 2_000),
        "pool:mail": config.Gate(None, 100, 36_000),
        "brain:openai": config.Gate(1, None, None),
    }
    assert load(home, {"GOCLAW_QUEUE_BOUNDS": "none"}).queue.gates == {}


@pytest.mark.parametrize(
    "text",
    ["fetch 2 at once", "tool:fetch", "tool:fetch two", "tool:a 1/min; tool:a 2/min", "tool:a 0/h",
     "tool:a 1 at once, 2 at once", "tool:a 1/week", "tool:a 1 at once;", ";"],
)  # fmt: skip
def test_a_bound_that_does_not_fit_is_refused(home: Path, text: str) -> None:
    assert "queue.bounds" in str(refusal(home, {"GOCLAW_QUEUE_BOUNDS": text}))


@pytest.mark.req("Q-16")
def test_one_lane_is_for_every_task(home: Path) -> None:
    write(home, "[queue]\nlanes = 3\nreserved_lanes = 3\n")
    assert "leaves none of 3 lanes" in str(refusal(home))
