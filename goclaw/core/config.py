"""What a user may set: config.toml, GOCLAW_<SECTION>_<KEY>, and the options of `goclaw serve`.

Owns every key with its default, range and sentence; the template is written from the same rows.
Not in here: bounds nobody may change (``core/limits.py``), where the file lies (``core/home.py``).
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused, GoclawError, UsageError
from goclaw.core.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = [
    "BRAIN_KINDS",
    "ENVIRONMENT_OTHER",
    "OPTIONS",
    "TEMPLATE",
    "AcpConfig",
    "Address",
    "BrainConfig",
    "Config",
    "DaemonConfig",
    "EventsConfig",
    "Gate",
    "ListenConfig",
    "NamedBrain",
    "QueueConfig",
    "Setting",
    "StoreConfig",
    "brain_settings",
    "load",
    "parse_address",
    "parse_bounds",
    "settings",
]

ENVIRONMENT_OTHER: Final = frozenset(
    {
        "GOCLAW_HOME",
        "GOCLAW_PURE",
        "GOCLAW_FAULTS",
        "GOCLAW_BUILD",
        "GOCLAW_TRACE",
        "GOCLAW_EXPECT_NATIVE",
    }
)
"""Names that begin like settings and are none."""

OPTIONS: Final = {
    "queue.lanes": "--lanes",
    "listen.address": "--listen",
    "listen.beyond_loopback": "--beyond-loopback",
    "brain.default": "--brain",
}
"""Settings that the command line may override: section.key to option."""


class Rule(NamedTuple):
    """What a value must be: whole numbers have a range, texts have choices or a parser."""

    text: str
    low: int = 0
    high: int = 0
    choices: tuple[str, ...] = ()


class Setting(NamedTuple):
    """One key of the file, as documentation and messages need it."""

    section: str
    key: str
    default: int | float | str
    rule: Rule

    @property
    def name(self) -> str:
        """``section.key``."""
        return f"{self.section}.{self.key}"

    @property
    def environment(self) -> str:
        """The variable that overrides the file."""
        return f"GOCLAW_{self.section}_{self.key}".upper()

    @property
    def wanted(self) -> str:
        """The allowed values, in words."""
        if isinstance(self.default, float):
            return f"a number from {self.rule.low} to {self.rule.high}"
        if isinstance(self.default, int):
            return f"a whole number from {self.rule.low} to {self.rule.high}"
        if self.rule.choices:
            return " or ".join(f'"{choice}"' for choice in self.rule.choices)
        return _TEXTS.get(self.name, "a text of 1 to 4096 characters")


def _number(default: int, low: int, high: int, text: str) -> Any:
    return field(default=default, metadata={"rule": Rule(text, low=low, high=high)})


def _amount(default: float, high: int, text: str) -> Any:
    return field(default=default, metadata={"rule": Rule(text, high=high)})


def _choice(default: str, *others: str, text: str) -> Any:
    return field(default=default, metadata={"rule": Rule(text, choices=(default, *others))})


def _text(default: str, text: str) -> Any:
    return field(default=default, metadata={"rule": Rule(text)})


@dataclass(frozen=True, slots=True)
class QueueConfig:
    """[queue]"""

    lanes: int = _number(limits.LANES, 1, limits.LANES_MAX, "Attempts that run at once.")
    lease_ms: int = _number(
        limits.LEASE_MS,
        limits.LEASE_MS_MIN,
        limits.LEASE_MS_MAX,
        "An attempt that sends no heartbeat for this long has lost its task.",
    )
    max_attempts: int = _number(
        limits.MAX_ATTEMPTS,
        1,
        limits.MAX_ATTEMPTS_MAX,
        "Retryable failures of a task before it is a dead letter.",
    )
    crash_budget: int = _number(
        limits.CRASH_BUDGET,
        1,
        limits.MAX_ATTEMPTS_MAX,
        "Attempts that never ended (crash, kill) before a task is a dead letter.",
    )
    poison: int = _number(
        limits.POISON,
        1,
        limits.MAX_ATTEMPTS_MAX,
        "Equal failures in a row that make a task a dead letter at once.",
    )
    backoff_ms_min: int = _number(
        limits.BACKOFF_MS_MIN, 1, limits.DAY_MS, "The first wait after a retryable failure."
    )
    backoff_ms_max: int = _number(
        limits.BACKOFF_MS_MAX, 1, limits.DAY_MS, "The longest wait after a retryable failure."
    )
    session_limit: int = _number(
        limits.SESSION_TASKS_MAX, 1, limits.TASKS_MAX, "Unfinished tasks of one session."
    )
    total_limit: int = _number(
        limits.TOTAL_TASKS_MAX, 1, limits.TASKS_MAX, "Unfinished tasks of all sessions."
    )
    aging_factor: int = _number(
        limits.AGING_FACTOR,
        1,
        limits.AGING_FACTOR_MAX,
        "Claims, for each level of priority, that may pass a waiting task before it is due.",
    )
    reserved_lanes: int = _number(
        0, 0, limits.LANES_MAX - 1, "Lanes that take prompts only; fewer than there are lanes."
    )
    interactive_weight: int = _number(
        1, 1, limits.WEIGHT_MAX, "Share of a session somebody sits at, to 1 of any other."
    )
    bounds: str = _text("none", "How many at once and how often, by tool, brain or pool.")
    idempotency_window_s: int = _number(
        limits.IDEMPOTENCY_WINDOW_MS // 1000,
        1,
        limits.RETENTION_S_MAX,
        "How long after its end a submission is known by its key.",
    )

    @property
    def gates(self) -> dict[str, Gate]:
        """``bounds``, parsed: the gate of each kind of work that has one."""
        return parse_bounds(self.bounds)


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """[events]"""

    retention_s: int = _number(
        limits.EVENT_RETENTION_MS // 1000,
        1,
        limits.RETENTION_S_MAX,
        "How long events of finished runs are kept.",
    )
    ring_bytes: int = _number(
        limits.RING_BYTES,
        limits.RING_BYTES_MIN,
        limits.MEMORY_BYTES_MAX,
        "Memory that keeps the newest events of one watched session.",
    )
    ring_bytes_total: int = _number(
        limits.RING_BYTES_TOTAL,
        limits.RING_BYTES_MIN,
        limits.MEMORY_BYTES_MAX,
        "The same for all watched sessions together.",
    )


@dataclass(frozen=True, slots=True)
class AcpConfig:
    """[acp]"""

    on_disconnect: str = _choice(
        "continue", "cancel", text="What a turn does when the client that asked for it goes away."
    )


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """[store]"""

    synchronous: str = _choice(
        "full",
        "normal",
        text="full: a power failure loses nothing acknowledged; normal: it may lose a moment.",
    )


class Address(NamedTuple):
    """A TCP address to listen on; port 0 means any free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """True when nobody outside this machine can get there."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback


@dataclass(frozen=True, slots=True)
class ListenConfig:
    """[listen]"""

    address: str = _text(
        "127.0.0.1:0", "Where /ws listens; port 0 takes a free one; none: only the Unix socket."
    )

    beyond_loopback: str = _choice(
        "no", "yes", text="yes: the address may be one that other machines reach, with TLS."
    )
    tls_certificate: str = _text(
        "none", "PEM file of the certificate and its chain; relative to the home. /ws is wss then."
    )
    tls_key: str = _text("none", "PEM file of its key, which only you may read.")
    names: str = _text("none", "Host names, comma between them, by which others call this machine.")

    @property
    def tcp(self) -> Address | None:
        """The address, or None when only the Unix socket is wanted."""
        return parse_address(self.address)

    @property
    def tls(self) -> tuple[str, str] | None:
        """The files of certificate and key; None without TLS."""
        return None if self.tls_certificate == "none" else (self.tls_certificate, self.tls_key)

    @property
    def known_as(self) -> tuple[str, ...]:
        """``names``, parsed."""
        return parse_names(self.names)


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """[daemon]"""

    drain_s: int = _number(
        limits.DRAIN_MS_MAX // 1000, 0, 3600, "How long a stop waits for running attempts."
    )
    idle_exit_s: int = _number(
        limits.IDLE_EXIT_MS // 1000,
        1,
        limits.RETENTION_S_MAX,
        "A daemon that `goclaw acp` started ends after this long without client and work.",
    )


@dataclass(frozen=True, slots=True)
class BrainConfig:
    """[brain]"""

    default: str = _text("direct", "The brain of a prompt that names none.")


BRAIN_KINDS: Final = ("openai", "anthropic", "acp", "cassette")
"""What a brain of the file can be; direct and script need no section."""


@dataclass(frozen=True, slots=True)
class NamedBrain:
    """[brains.NAME]: a brain that somebody configured. "" and 0 stand for what was left out."""

    name: str
    kind: str = _choice("", *BRAIN_KINDS, text="What it is; there is no default.")
    base_url: str = _text("", "Where the server is, up to /v1: http://127.0.0.1:11434/v1.")
    model: str = _text("", "The model's name, as the server calls it.")
    key_env: str = _text("", "The variable of the daemon's environment that holds the key.")
    key: str = _text("", "secret:NAME, a stored secret that is the key, bound to brain and host.")
    command: str = _text("", "acp: the agent's command line.")
    cassette: str = _text("", "cassette: the file with the record.")
    records: str = _text("", "cassette: the brain that is asked, once, for what is not in it.")
    answer_tokens: int = _number(
        0, 0, limits.BRAIN_TOKENS_MAX, "The most of one answer; 0: as many as the server likes."
    )
    context_tokens: int = _number(
        limits.BRAIN_CONTEXT_TOKENS,
        limits.BRAIN_CONTEXT_TOKENS_MIN,
        limits.BRAIN_TOKENS_MAX,
        "What the model can take in, question and answer together.",
    )
    input_price: float = _amount(0.0, limits.BRAIN_PRICE_MAX, "US dollars for a million tokens in.")
    output_price: float = _amount(
        0.0, limits.BRAIN_PRICE_MAX, "US dollars for a million tokens out."
    )
    run_tokens: int = _number(
        0, 0, limits.BRAIN_TOKENS_MAX, "Budget of a run, in and out together; 0: none."
    )
    run_cost: float = _amount(
        0.0, limits.BRAIN_PRICE_MAX, "The same in US dollars; needs the prices."
    )
    run_steps: int = _number(0, 0, limits.STEPS_MAX, "Answers of a run; 0: the general bound.")
    run_s: int = _number(
        0, 0, limits.RETENTION_S_MAX, "Seconds that a run may wait for its model; 0: any."
    )

    @property
    def secret(self) -> str | None:
        """The name of the stored secret that is its key."""
        return self.key.removeprefix(_SECRET) or None


@dataclass(frozen=True, slots=True)
class Config:
    """All settings, checked. ``Config()`` is the defaults."""

    queue: QueueConfig = QueueConfig()
    events: EventsConfig = EventsConfig()
    acp: AcpConfig = AcpConfig()
    store: StoreConfig = StoreConfig()
    listen: ListenConfig = ListenConfig()
    daemon: DaemonConfig = DaemonConfig()
    brain: BrainConfig = BrainConfig()
    brains: tuple[NamedBrain, ...] = ()


_TEXTS: Final = {
    "listen.address": '"HOST:PORT" with a numeric host or localhost, or "none"',
    "listen.tls_certificate": 'a path, or "none"',
    "listen.tls_key": 'a path, or "none"',
    "listen.names": '"none", or NAME,NAME,...',
    "queue.bounds": (
        '"none", or WORK RULES; WORK RULES; ... with WORK as tool:NAME, brain:NAME or pool:NAME '
        "and RULES as in tool:fetch 2 at once, 30/min"
    ),
    "brain.default": "the name of a brain, of 1 to 4096 characters",
}

_NAMED: Final = "brains"
_SECRET: Final = "secret:"
_KEY: Final = re.compile(r"secret:[a-z0-9][a-z0-9._-]{0,63}")
_BRAIN_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_BRAIN_NEEDS: Final = {
    "openai": ("base_url", "model"),
    "anthropic": ("model",),
    "acp": ("command",),
    "cassette": ("cassette",),
}

_ORDERED: Final = (
    ("queue.backoff_ms_min", "queue.backoff_ms_max"),
    ("events.ring_bytes", "events.ring_bytes_total"),
)
"""The first of a pair may not be above the second."""


def settings() -> Iterator[Setting]:
    """Every key in the order of the file, those of [brains.NAME] left out."""
    for section in dataclasses.fields(Config):
        if section.name == _NAMED:
            continue
        for row in dataclasses.fields(type(section.default)):  # type: ignore[arg-type]
            default: Any = row.default
            yield Setting(section.name, row.name, default, row.metadata["rule"])


def brain_settings() -> Iterator[Setting]:
    """The keys of a [brains.NAME] section."""
    for row in dataclasses.fields(NamedBrain)[1:]:
        default: Any = row.default
        yield Setting(_NAMED, row.name, default, row.metadata["rule"])


_SETTINGS: Final = {row.name: row for row in settings()}
_BRAIN_SETTINGS: Final = {row.key: row for row in brain_settings()}


def load(
    home: Path, environ: Mapping[str, str], options: Mapping[str, str] | None = None
) -> Config:
    """Read ``home/config.toml``; the environment wins over it, ``options`` (see OPTIONS) over both.

    A missing file means the defaults. Raises ConfigRefused (UsageError for an option) with the key,
    the value, what is allowed and what to do; nothing is applied in part.
    """
    values: dict[str, int | str] = {}
    brains = _take_file(home / "config.toml", values)
    _take_environment(environ, values)
    for name, text in (options or {}).items():
        values[name] = _from_text(_SETTINGS[name], text, f"{OPTIONS[name]} {text}", UsageError)
    _settle_pairs(values)
    _check_lanes(values)
    _check_listen(values)
    sections: dict[str, Any] = {}
    for section in dataclasses.fields(Config):
        if section.name == _NAMED:
            continue
        chosen = {
            row.key: values[row.name]
            for row in _SETTINGS.values()
            if row.section == section.name and row.name in values
        }
        sections[section.name] = dataclasses.replace(section.default, **chosen)  # type: ignore[type-var]
    return Config(**sections, brains=brains)


def parse_address(text: str) -> Address | None:
    """``HOST:PORT`` or ``[IPV6]:PORT`` as an Address; None for "" and "none".

    Raises ValueError when it is neither.
    """
    if text in ("", "none"):
        return None
    host, colon, digits = text.rpartition(":")
    if not colon or not host:
        raise ValueError("it is not HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("an IPv6 host is written in brackets")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and int(digits) <= 65535):
        raise ValueError("the port is not a number from 0 to 65535")
    if host != "localhost":
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError("the host is neither localhost nor a numeric address") from None
    return Address(host, int(digits))


_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


def parse_names(text: str) -> tuple[str, ...]:
    """``build.example, build.lan`` as its names in lower case; none for "none".

    Raises ValueError that says which is no host name.
    """
    found = [] if text == "none" else [name.strip().lower() for name in text.split(",")]
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name or 'nothing'} is no host name")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Gate:
    """The bounds of one kind of work; None = unbounded."""

    most: int | None
    """Attempts (of a tool also calls) at once."""
    count: int | None
    """As many may begin in a row, one more each ``refill_ms``."""
    refill_ms: int | None


_UNITS: Final = {"s": 1_000, "min": 60_000, "h": 3_600_000, "d": limits.DAY_MS}
_WORK: Final = re.compile(r"(?:tool|brain|pool):\S+")
_AT_ONCE: Final = re.compile(r"(\d{1,6}) at once")
_RATE: Final = re.compile(r"(\d{1,6})/(s|min|h|d)")


def parse_bounds(text: str) -> dict[str, Gate]:
    """``tool:fetch 2 at once, 30/min; pool:mail 100/h`` as a gate for each kind of work.

    Raises ValueError that names what does not fit; "" and "none" mean no gate.
    """
    found: dict[str, Gate] = {}
    for entry in text.split(";") if text.strip() not in ("", "none") else []:
        work, _, rules = entry.strip().partition(" ")
        if not _WORK.fullmatch(work) or work in found:
            raise ValueError(f"{work or 'an empty entry'} is no kind of work, or is named twice")
        most = count = refill_ms = None
        for rule in rules.split(","):
            at_once, rate = _AT_ONCE.fullmatch(rule.strip()), _RATE.fullmatch(rule.strip())
            if at_once and most is None and int(at_once[1]) > 0:
                most = int(at_once[1])
            elif rate and count is None and int(rate[1]) > 0:
                count = int(rate[1])
                refill_ms = max(1, _UNITS[rate[2]] // count)
            else:
                raise ValueError(f"{rule.strip() or 'nothing'} is no rule for {work}")
        found[work] = Gate(most, count, refill_ms)
    if len(found) > limits.GATES_MAX:
        raise ValueError(f"there are more than {limits.GATES_MAX}")
    return found


_PARSERS: Final[dict[str, Callable[[str], object]]] = {
    "listen.address": parse_address,
    "listen.names": parse_names,
    "queue.bounds": parse_bounds,
}


def _take_file(path: Path, values: dict[str, int | str]) -> tuple[NamedBrain, ...]:
    try:
        data = read_regular(path, limits.CONFIG_BYTES_MAX)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigRefused(
            f"{path} cannot be read: {error.strerror}.", hint="Mend its permissions, or remove it."
        ) from None
    if len(data) > limits.CONFIG_BYTES_MAX:
        raise ConfigRefused(
            f"{path} is larger than {limits.CONFIG_BYTES_MAX} bytes.",
            hint="Remove it: it is no configuration of goclaw.",
        )
    try:
        document = tomllib.loads(data.decode())
    except UnicodeDecodeError:
        raise ConfigRefused(f"{path} is not UTF-8 text.", hint="Save it as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ConfigRefused(
            f"{path} is not valid TOML: {str(error)[:200]}.", hint="Mend that line."
        ) from None
    brains = document.pop(_NAMED, {})
    for section, table in document.items():
        known = [row for row in _SETTINGS.values() if row.section == section]
        if not known:
            raise _unknown(f"{path}: [{section}]", section, {row.section for row in settings()})
        if not isinstance(table, dict):
            raise ConfigRefused(
                f"{path}: {section} is not a section.", hint=f"Write [{section}] on its own line."
            )
        for key, value in table.items():
            row = _SETTINGS.get(f"{section}.{key}")
            where = f"{path}: [{section}] {key}"
            if row is None:
                raise _unknown(where, key, {known_row.key for known_row in known})
            values[row.name] = _checked(row, value, f"{where} = {_shown(value)}", ConfigRefused)
    if not isinstance(brains, dict) or len(brains) > limits.BRAINS_MAX:
        raise ConfigRefused(
            f"{path}: brains is not a table of at most {limits.BRAINS_MAX} brains.",
            hint="Write [brains.NAME] on its own line.",
            key=_NAMED,
        )
    return tuple(_brain(path, name, table) for name, table in brains.items())


def _brain(path: Path, name: str, table: object) -> NamedBrain:
    where = f"{path}: [brains.{name[:80]}]"
    if not _BRAIN_NAME.fullmatch(name) or name in ("direct", "script", "acp"):
        raise ConfigRefused(
            f"{where} is no name for a brain.",
            hint="Take lower-case letters, digits, - and _; direct, script and acp are taken.",
            key=f"{_NAMED}.{name[:80]}",
        )
    if not isinstance(table, dict):
        raise ConfigRefused(
            f"{where} is not a section.", hint=f"Write [brains.{name}] on its own line.", key=name
        )
    found: dict[str, Any] = {}
    for key, value in table.items():
        row = _BRAIN_SETTINGS.get(key)
        if row is None:
            raise _unknown(f"{where} {key}", key, set(_BRAIN_SETTINGS))
        found[key] = _checked_brain(row, value, f"{where} {key} = {_shown(value)}")
    kind = found.get("kind", "")
    for key in ("kind", *_BRAIN_NEEDS.get(kind, ())):
        if not found.get(key):
            row = _BRAIN_SETTINGS[key]
            raise ConfigRefused(
                f"{where} has no {key}.",
                hint=f"{row.rule.text} Takes {row.wanted}.",
                key=f"{_NAMED}.{name}.{key}",
            )
    tape = found.get("cassette", "/")
    if not tape.startswith(("/", "~/")):
        raise ConfigRefused(
            f"{where} cassette = {_shown(tape)} is no absolute path.",
            hint="Begin it with / or ~/: the daemon has no folder of yours.",
            key=f"{_NAMED}.{name}.cassette",
        )
    if "key" in found and ("key_env" in found or not _KEY.fullmatch(found["key"])):
        # not shown: it may be a key
        raise ConfigRefused(
            f"{where} key is no reference to a secret, or stands beside key_env.",
            hint='Write key = "secret:NAME" alone, and keep the value with `goclaw secret set`.',
            key=f"{_NAMED}.{name}.key",
        )
    return NamedBrain(name=name, **found)


def _checked_brain(row: Setting, value: object, where: str) -> int | float | str:
    if not isinstance(row.default, float):
        return _checked(row, value, where, ConfigRefused)
    if type(value) in (int, float) and row.rule.low <= value <= row.rule.high:  # type: ignore[operator]
        return float(value)  # type: ignore[arg-type]
    raise ConfigRefused(
        f"{where} is not allowed.", hint=f"{row.key} takes {row.wanted}.", key=row.name
    )


def _take_environment(environ: Mapping[str, str], values: dict[str, int | str]) -> None:
    known = {row.environment: row for row in _SETTINGS.values()}
    prefixes = tuple({f"GOCLAW_{row.section.upper()}_" for row in _SETTINGS.values()})
    for variable in sorted(environ):
        row = known.get(variable)
        if row is not None:
            text = environ[variable]
            values[row.name] = _from_text(row, text, f"{variable}={_shown(text)}", ConfigRefused)
        elif variable.startswith("GOCLAW_") and variable not in ENVIRONMENT_OTHER:
            # Foreign GOCLAW_ names are none of our business, misspelled ones are.
            near = difflib.get_close_matches(variable, known, n=1, cutoff=0.85)
            if near or variable.startswith(prefixes):
                raise _unknown(f"environment {variable}", variable, set(known))


def _unknown(where: str, name: str, known: set[str]) -> ConfigRefused:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(sorted(known))}."
    return ConfigRefused(f"{where} is unknown.", hint=hint, key=name)


def _from_text(row: Setting, text: str, where: str, refusal: type[GoclawError]) -> int | str:
    if not isinstance(row.default, int):
        return _checked(row, text, where, refusal)
    digits = text.strip()
    # int() would also take underscores, signs and other scripts' digits
    if digits.isascii() and digits.isdigit() and len(digits) <= 20:
        return _checked(row, int(digits), where, refusal)
    return _checked(row, text, where, refusal)


def _checked(row: Setting, value: object, where: str, refusal: type[GoclawError]) -> int | str:
    why = ""
    if isinstance(row.default, int):
        if type(value) is int and row.rule.low <= value <= row.rule.high:
            return value
    elif isinstance(value, str):
        if row.rule.choices:
            if value in row.rule.choices:
                return value
        elif row.name in _PARSERS:
            try:
                _PARSERS[row.name](value)
            except ValueError as error:
                why = f" ({error})"
            else:
                return value
        elif 1 <= len(value) <= limits.PATH_CHARS_MAX and value.isprintable():
            return value
    raise refusal(
        f"{where} is not allowed{why}.",
        hint=f"{row.section}.{row.key} takes {row.wanted}; the default is {_toml(row.default)}.",
        key=row.name,
    )


def _settle_pairs(values: dict[str, int | str]) -> None:
    """A default gives way to a value that was set; two set values must agree."""
    for low, high in _ORDERED:
        bottom = values.get(low, _SETTINGS[low].default)
        top = values.get(high, _SETTINGS[high].default)
        assert isinstance(bottom, int)
        assert isinstance(top, int)
        if bottom <= top:
            continue
        if low in values and high in values:
            raise ConfigRefused(
                f"{low} = {bottom} is above {high} = {top}.",
                hint=f"Lower {low} or raise {high}.",
                key=low,
            )
        if low in values:
            values[high] = bottom
        else:
            values[low] = top


def _check_lanes(values: dict[str, int | str]) -> None:
    """One lane at least is for every task (Q-16)."""
    lanes = values.get("queue.lanes", limits.LANES)
    reserved = values.get("queue.reserved_lanes", 0)
    assert isinstance(lanes, int)
    assert isinstance(reserved, int)
    if reserved >= lanes:
        raise ConfigRefused(
            f"queue.reserved_lanes = {reserved} leaves none of {lanes} lanes for other tasks.",
            hint="Lower it, or raise queue.lanes.",
            key="queue.reserved_lanes",
        )


def _check_listen(values: dict[str, int | str]) -> None:
    """Beyond this machine only with TLS and a word that says so (A-9)."""
    chosen = {row.key: values.get(row.name, row.default) for row in _SETTINGS.values()
              if row.section == "listen"}  # fmt: skip
    address = parse_address(str(chosen["address"]))
    tls = [name for name in ("tls_certificate", "tls_key") if chosen[name] != "none"]
    if len(tls) == 1:
        raise ConfigRefused(
            f"listen.{tls[0]} stands alone.",
            hint="TLS needs both: tls_certificate and tls_key.",
            key=f"listen.{tls[0]}",
        )
    if address is None or address.is_loopback:
        return
    where = f"listen.address = {_toml(str(chosen['address']))} is not on this machine's loopback"
    if chosen["beyond_loopback"] != "yes":
        raise ConfigRefused(
            f"{where}: other machines could connect.",
            hint='If they should, set listen.beyond_loopback = "yes", and a certificate.',
            key="listen.beyond_loopback",
        )
    if not tls:
        raise ConfigRefused(
            f"{where}, and without TLS its token could be read on the way.",
            hint="Set listen.tls_certificate and listen.tls_key.",
            key="listen.tls_certificate",
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _toml(value: int | float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _template() -> str:
    lines = [
        "# Settings of goclaw, read at start. Every key is here with its default: take away the",
        "# '#' before a key to change it. The environment wins over this file: a variable is named",
        "# GOCLAW_<SECTION>_<KEY>, as in GOCLAW_QUEUE_LANES=8. Unknown keys are refused.",
    ]
    section = ""
    for row in settings():
        if row.section != section:
            section = row.section
            lines += ["", f"[{section}]"]
        lines += [f"# {row.rule.text}", f"# Takes {row.wanted}."]
        lines += [f"#{row.key} = {_toml(row.default)}"]
    lines += [
        "",
        "# A model, or another agent, has a section; docs/brains.md says what it holds, and",
        "# what policy.toml must allow. Then: goclaw run --brain local PROMPT",
        "# [brains.local]",
        '# kind = "openai"',
        '# base_url = "http://127.0.0.1:11434/v1"',
        '# model = "qwen3:8b"',
    ]
    return "\n".join(lines) + "\n"


TEMPLATE: Final = _template()
"""The config.toml of a new home: every key, its sentence and its default, all commented out."""
