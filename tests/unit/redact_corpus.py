"""Secrets as they are found in the wild, made up, and the texts they are found in.

Owns the generators. Not in here: how many of them may be missed.
"""

from __future__ import annotations

import base64
import json
import string
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

ALNUM = string.ascii_letters + string.digits
URLSAFE = ALNUM + "-_"


def _of(seed: random.Random, alphabet: str, length: int) -> str:
    return "".join(seed.choices(alphabet, k=length))


def _jwt(seed: random.Random) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    head, body = {"alg": "HS256", "typ": "JWT"}, {"sub": _of(seed, ALNUM, 12), "iat": seed.random()}
    return f"{part(head)}.{part(body)}.{_of(seed, URLSAFE, 43)}"


def _pem(seed: random.Random) -> str:
    kind = seed.choice(("RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "))
    lines = "\n".join(_of(seed, ALNUM + "+/", 64) for _ in range(seed.randint(3, 12)))
    return f"-----BEGIN {kind}PRIVATE KEY-----\n{lines}\n-----END {kind}PRIVATE KEY-----"


UPPER = string.ascii_uppercase + "234567"
HEX = "0123456789abcdef"

PREFIXED: dict[str, Callable[[random.Random], str]] = {
    "anthropic": lambda s: "sk-ant-api03-" + _of(s, URLSAFE, 93) + "AA",
    "openai": lambda s: "sk-" + _of(s, ALNUM, 48),
    "openai project": lambda s: "sk-proj-" + _of(s, URLSAFE, s.randint(48, 150)),
    "aws": lambda s: s.choice(("AKIA", "ASIA")) + _of(s, UPPER, 16),
    "github": lambda s: f"gh{s.choice('pousr')}_" + _of(s, ALNUM, 36),
    "github fine": lambda s: f"github_pat_{_of(s, ALNUM, 22)}_{_of(s, ALNUM, 59)}",
    "gitlab": lambda s: "glpat-" + _of(s, URLSAFE, 20),
    "slack": lambda s: f"xox{s.choice('abp')}-{_of(s, string.digits, 12)}-{_of(s, ALNUM, 24)}",
    "google": lambda s: "AIza" + _of(s, URLSAFE, 35),
    "google oauth": lambda s: "ya29." + _of(s, URLSAFE, 100),
    "stripe": lambda s: f"{s.choice(('sk', 'rk'))}_live_" + _of(s, ALNUM, s.choice((24, 99))),
    "sendgrid": lambda s: f"SG.{_of(s, URLSAFE, 22)}.{_of(s, URLSAFE, 43)}",
    "npm": lambda s: "npm_" + _of(s, ALNUM, 36),
    "pypi": lambda s: "pypi-AgEIcHlwaS5vcmc" + _of(s, URLSAFE, 120),
    "huggingface": lambda s: "hf_" + _of(s, string.ascii_letters, 34),
    "digitalocean": lambda s: "dop_v1_" + _of(s, HEX, 64),
    "docker": lambda s: "dckr_pat_" + _of(s, URLSAFE, 27),
    "vault": lambda s: "hvs." + _of(s, URLSAFE, 90),
    "telegram": lambda s: f"{_of(s, '123456789', 9)}:AA{_of(s, URLSAFE, 32)}{_of(s, ALNUM, 1)}",
    "jwt": _jwt,
    "private key": _pem,
}

SHAPES = (
    "{0}", "key {0} ok", "export API_KEY={0}", '{{"token": "{0}"}}', "Authorization: Bearer {0}",
    "curl -H 'X-Api-Key: {0}' https://example.org", "api_key: {0}", "const k = '{0}';", "({0})",
    "I found this: {0}.", "{0}\nand more", 'password="{0}"',
)  # fmt: skip

NAMED = (
    "password={0}", 'PASSWORD="{0}"', "db_password: {0}", '"api_key": "{0}"', "API_KEY={0}",
    "secret_key = '{0}'", '"client_secret":"{0}"', "auth_token: {0}", "export SECRET={0}",
    'access_key="{0}"', "token={0}", '{{"accessKey": "{0}"}}', "MY_APP_SECRET_KEY={0}",
    "aws_secret_access_key = {0}", "Authorization: Bearer {0}", "authorization: Basic {0}",
    "postgres://app:{0}@db.example.org/x", "https://user:{0}@example.org/repo.git",
    "redis://:{0}@cache:6379/0", "pwd={0};",
)  # fmt: skip


def prefixed(count: int, seed: random.Random) -> Iterator[tuple[str, str, str]]:
    """(kind, secret, text) of kinds that begin in a fixed way."""
    for index in range(count):
        kind = list(PREFIXED)[index % len(PREFIXED)]
        secret = PREFIXED[kind](seed)
        yield kind, secret, seed.choice(SHAPES).format(secret)


def unnamed(count: int, seed: random.Random) -> Iterator[tuple[str, str, str]]:
    """(shape, secret, text) of secrets that only their surroundings give away."""
    for index in range(count):
        shape = NAMED[index % len(NAMED)]
        alphabet = seed.choice((ALNUM, ALNUM, HEX, ALNUM + "+/", ALNUM + "-_.", ALNUM + "!#*^~?"))
        if "Basic" in shape:
            alphabet = ALNUM + "+/"
        if "://" in shape:
            alphabet = ALNUM + "-_.!~"
        secret = _of(seed, alphabet, seed.choice((16, 20, 24, 32, 40, 64)))
        yield shape, secret, shape.format(secret)


WORDS = (
    "the token bucket refills every second",
    "set password = getpass.getpass()",
    "api_key: str | None = None",
    "token: the bearer token of the network port",
    "secret = os.environ['SECRET_NAME']",
    "password: ${DB_PASSWORD}",
    "key=lambda item: item.value",
    "if token == expected_token_value:",
    "commit 7c32fe2c8a0f4d3e9b1a6c5d4e3f2a1b0c9d8e7f",
    "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "id 6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
    "https://example.org/path?q=1&page=2#top",
    "git@github.com:owner/repo.git",
    "ssh://git@host.example:2222/srv/repo",
    "mailto:someone@example.org",
    "risk-free task-based desk-top ask-me",
    "public_key_path=/etc/ssl/public/key_2024.pem",
    "idempotency_key: task_01J8ZC4",
    "primary_key = Column(Integer, primary_key=True)",
    "tokens=128000 max_tokens: 4096 key_count=3",
    "sort_key = 'created_at'; cache_key = f'{name}:{version}'",
    "Bearer tokens are sent in a header",
    "Basic authentication is not used",
    "passwords must have at least 12 characters",
    "the secret: nobody knows it",
    "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUO\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJhbmFuYQ user@host",
    '{"sessionId": "session_01J8ZC4Q", "runId": "run_01J8ZC4Q", "token": null}',
    "GOCLAW_TOKEN_FILE=/home/u/.goclaw/auth.token",
    "password=********",
    "tokenizer: tiktoken/cl100k_base",
    "2026-11-22T18:43:11.123Z INFO engine.scheduler: lanes 4 busy 2",
    "http://127.0.0.1:8080/ws and ws://localhost:1/ws",
)
"""Sentences and lines that only sound like secrets."""


def ordinary(count: int, seed: random.Random) -> Iterator[str]:
    """Ordinary lines: of people, programs, logs and configuration."""
    for _ in range(count):
        words = [seed.choice(WORDS) for _ in range(seed.randint(1, 3))]
        number = seed.randint(0, 10**6)
        words.insert(0, seed.choice(("", "# ", "- ", f"{number}: ", f"x_{number} = ")))
        yield " ".join(words)
