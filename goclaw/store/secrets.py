"""Secrets: sealed on disk, bound to hosts and tools, put in at the boundary and nowhere else (A-5).

Owns their sealing, their bindings and who gets a value. Not in here: the key's place (``keys``),
finding values in texts (``policy/redact``), the decision ``secret.use`` (the gate).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from goclaw.core import limits, log
from goclaw.core.errors import InvalidParams, SecretRefused, UnknownId
from goclaw.store import keys, queries
from goclaw.store.schema import database_files, open_to_read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from goclaw.core.clock import Clock
    from goclaw.store.database import Database

__all__ = ["Secret", "Secrets", "kept_secrets"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_HOST: Final = re.compile(r"\.?[a-z0-9_](?:[a-z0-9_.:-]{0,251}[a-z0-9_])?")
_TOOL: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REFERENCE: Final = re.compile(r"secret:([a-z0-9][a-z0-9._-]{0,63})(?:#([0-9a-f]{12}))?")
_NONCE_BYTES: Final = 12

_log = log.logger("store.secrets")


@dataclass(frozen=True, slots=True)
class Secret:
    """What may be told of a secret: all but its value."""

    name: str
    digest: str
    hosts: tuple[str, ...]
    tools: tuple[str, ...]
    created_at: int
    updated_at: int

    def is_for(self, tool: str, host: str | None) -> bool:
        """Is it bound to the tool, and to the host (in canonical form) it goes to?"""
        return tool in self.tools and (host is None or _is_bound(self.hosts, host))


def kept_secrets(home: Path) -> list[Secret]:
    """What the database of ``home`` holds, without a value; also while a daemon serves it. Nothing
    where it cannot be read."""
    path = database_files(home)[0]
    if not path.exists():
        return []
    rows: list[tuple[Any, ...]]
    reader = open_to_read(path)
    try:
        rows = reader.execute(queries.load().queries["secrets_all"].sql).fetchall()
    except apsw.Error:  # no database, or from before there were any: others say so
        rows = []
    finally:
        reader.close()
    return [_kept(*row) for row in rows]


def _kept(
    name: str, _sealed: bytes, hosts: str, tools: str, digest: str, created: int, updated: int
) -> Secret:
    bound = tuple(orjson.loads(hosts)), tuple(orjson.loads(tools))
    return Secret(name, digest, *bound, created, updated)


class Secrets:
    """The secrets of a home, their values in memory. Belongs to the loop.

    ``on_change`` is called with every (name, digest, value) that is or was one in this life: what
    was revoked is still not written down.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self._home = database.path.parent
        self._key: bytes | None = None
        self._known: dict[str, tuple[Secret, str | None]] = {}
        self._seen: dict[tuple[str, str], str] = {}
        self.on_change: Callable[[Sequence[tuple[str, str, str]]], None] = lambda seen: None

    async def load(self) -> None:
        """Read them all. What does not open stays listed, and nobody gets it."""
        rows = await self._database.read("secrets_all")
        trouble = ""
        if rows:
            try:
                self._key = await self._in_thread(keys.find_key, self._home)
            except SecretRefused as error:
                trouble = error.message
            if self._key is None:
                _log.error("no key", extra={"data": {"why": trouble or "there is none"}})
        for name, sealed, hosts, tools, digest, created_at, updated_at in rows:
            secret = Secret(
                name, digest, tuple(orjson.loads(hosts)), tuple(orjson.loads(tools)), created_at,
                updated_at,
            )  # fmt: skip
            value = None if self._key is None else _opened(self._key, secret, sealed)
            if value is None:
                _log.error("a secret does not open", extra={"data": {"secret": name}})
            self._keep(secret, value)
        self.on_change(self._all())

    def listed(self) -> list[Secret]:
        """All of them, by name."""
        return [self._known[name][0] for name in sorted(self._known)]

    async def set(
        self, name: str, value: str, *, hosts: Sequence[str], tools: Sequence[str]
    ) -> Secret:
        """Keep a value; one of that name is replaced, and so are its bindings."""
        _check_name(name)
        _check_value(value)
        now = self._clock.wall_ms()
        before = self._known.get(name)
        if before is None and len(self._known) >= limits.SECRETS_MAX:
            raise SecretRefused(
                f"There are {limits.SECRETS_MAX} secrets, which is the bound.", hint="Remove one."
            )
        made = Secret(
            name, "", *_bindings(hosts, tools), before[0].created_at if before else now, now
        )
        return await self._put(made, value)

    async def rotate(self, name: str, value: str) -> Secret:
        """Another value under the same bindings; references to the old one are dead at once."""
        before = self._of(name)
        _check_value(value)
        made = Secret(
            name, "", before.hosts, before.tools, before.created_at, self._clock.wall_ms()
        )
        return await self._put(made, value)

    async def remove(self, name: str) -> None:
        """Forget a value; nobody gets it from now on."""
        self._of(name)
        del self._known[name]
        await self._database.write("secret_drop", name=name)

    def knows(self, name: str) -> bool:
        """Is there one of that name?"""
        return name in self._known

    def revealed(self, text: str, *, tool: str, host: str | None = None) -> str:
        """The text with its references replaced, for the boundary alone. ``host``: where it goes,
        in canonical form; None: to a program.

        SecretRefused for a secret that is gone, has another value by now, or is not bound to both.
        """

        def value(match: re.Match[str]) -> str:
            name, digest = match.groups()
            if name not in self._known and digest is None:
                return match[0]
            secret = self._of(name)
            if digest not in (None, secret.digest):
                raise SecretRefused(
                    f"The secret {name} has another value by now than the one that was meant.",
                    hint=f"Write secret:{name} for the present one.",
                )
            if not secret.is_for(tool, host):
                where = tool if host is None else f"{tool} toward {host}"
                raise SecretRefused(
                    f"The secret {name} is not bound to {where}.",
                    hint="`goclaw secret list` shows to what it is bound.",
                )
            found = self._known[name][1]
            if found is None:
                raise SecretRefused(
                    f"The secret {name} does not open with the key of this home.",
                    hint="Bring the right secrets.key back, or set the secret anew.",
                )
            return found

        return _REFERENCE.sub(value, text)

    # -- sealing -------------------------------------------------------------------------------

    def _of(self, name: str) -> Secret:
        known = self._known.get(name)
        if known is None:
            raise UnknownId(
                f"There is no secret {name[:80]!r}.",
                hint="`goclaw secret list` names all.",
                what="secret",
                id=name[:80],
            )
        return known[0]

    async def _put(self, made: Secret, value: str) -> Secret:
        if self._key is None:
            found = await self._in_thread(keys.find_key, self._home)
            self._key = found or await self._in_thread(
                keys.make_key, self._home, self._clock.random_bytes
            )
        assert self._key is not None
        text = f"{made.name}\0{value}".encode()
        digest = hmac.new(self._key, text, hashlib.sha256).hexdigest()[:12]
        secret = Secret(made.name, digest, made.hosts, made.tools, made.created_at, made.updated_at)
        # looked for before it is written anywhere
        self._seen[secret.name, digest] = value
        self.on_change(self._all())
        nonce = self._clock.random_bytes(_NONCE_BYTES)
        bound = [orjson.dumps(names).decode() for names in (secret.hosts, secret.tools)]
        sealed = nonce + _cipher(self._key).encrypt(nonce, value.encode(), _bound_data(secret))
        await self._database.write(
            "secret_put", name=secret.name, sealed=sealed, hosts=bound[0], tools=bound[1],
            digest=digest, created=secret.created_at, now=secret.updated_at,
        )  # fmt: skip
        self._keep(secret, value)
        return secret

    def _keep(self, secret: Secret, value: str | None) -> None:
        self._known[secret.name] = (secret, value)
        if value is not None:
            self._seen[secret.name, secret.digest] = value

    def _all(self) -> list[tuple[str, str, str]]:
        return [(name, digest, value) for (name, digest), value in self._seen.items()]

    @staticmethod
    async def _in_thread(work: Callable[..., bytes | None], *arguments: object) -> bytes | None:
        return await asyncio.get_running_loop().run_in_executor(None, work, *arguments)


def _cipher(key: bytes) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers import aead  # late: it is slow to import

    return aead.AESGCM(key)


def _opened(key: bytes, secret: Secret, sealed: bytes) -> str | None:
    """The value; None when the key, the bindings or the bytes are not those it was sealed with."""
    from cryptography.exceptions import InvalidTag

    nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return _cipher(key).decrypt(nonce, rest, _bound_data(secret)).decode()
    except (InvalidTag, ValueError):
        return None


def _bound_data(secret: Secret) -> bytes:
    return orjson.dumps([secret.name, secret.hosts, secret.tools])


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidParams(
            "The name of a secret has up to 64 of a-z 0-9 . _ - and begins with a letter or digit."
        )


def _check_value(value: str) -> None:
    least, most = limits.SECRET_CHARS_MIN, limits.SECRET_CHARS_MAX
    if not least <= len(value) <= most or len(set(value)) < 4:
        raise InvalidParams(
            f"A secret has {least} to {most} characters, four different ones at least: what is"
            " shorter occurs by chance."
        )
    if "\0" in value:
        raise InvalidParams("A secret is text, without a NUL.")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidParams("A secret is text: it holds a lone surrogate.") from None


def _bindings(
    hosts: Sequence[str], tools: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    found = tuple(dict.fromkeys(host.lower().removesuffix(".") for host in hosts))
    for host in found:
        if not _HOST.fullmatch(host):
            raise InvalidParams(f"{host[:80]!r} is no host: api.example.org, or .example.org.")
    for tool in tools:
        if not _TOOL.fullmatch(tool):
            raise InvalidParams(f"{tool[:80]!r} is no name of a tool.")
    if max(len(found), len(tools)) > limits.SECRET_BINDINGS_MAX:
        raise InvalidParams(f"A secret has at most {limits.SECRET_BINDINGS_MAX} hosts and tools.")
    used = tuple(dict.fromkeys(tools)) or (("http",) if found else ())
    if not used or ("http" in used and not found):
        raise InvalidParams(
            "A secret is bound to hosts or tools; bound to nothing, nobody gets it."
        )
    return found, used


def _is_bound(hosts: tuple[str, ...], host: str) -> bool:
    return any(host == one or (one[0] == "." and host.endswith(one)) for one in hosts)
