"""The key that the secrets of a home are sealed with: in the system's keyring, or a file (A-5).

Owns where it is looked for and made. Not in here: sealing (``secrets``).
"""

from __future__ import annotations

import base64
import contextlib
import os
from typing import TYPE_CHECKING, Final

from goclaw.core.errors import SecretRefused
from goclaw.core.files import read_regular

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["KEY_BYTES", "find_key", "make_key"]

KEY_BYTES: Final = 32
_SERVICE: Final = "goclaw"
_FILE: Final = "secrets.key"


def find_key(home: Path) -> bytes | None:
    """The key of a home: its file, else the keyring; None when there is none. Blocks."""
    try:
        found = read_regular(home / _FILE, 4 * KEY_BYTES)
    except FileNotFoundError:
        return _from_keyring(home)
    except OSError as error:
        raise _unread(home, error.strerror or str(error)) from error
    return _decoded(home, found.decode("ascii", "replace"))


def make_key(home: Path, random_bytes: Callable[[int], bytes]) -> bytes:
    """A new key, kept in the keyring where one works, else in a file that only its owner may read.
    Blocks."""
    key = random_bytes(KEY_BYTES)
    if not _into_keyring(home, key):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            with open(os.open(home / _FILE, flags, 0o600), "wb") as file:
                file.write(base64.b64encode(key) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SecretRefused(
                f"The key cannot be kept: {error.strerror}.", hint="Mend the home's disk."
            ) from error
    return key


def _decoded(home: Path, text: str) -> bytes:
    with contextlib.suppress(ValueError):
        key = base64.b64decode(text.strip(), validate=True)
        if len(key) == KEY_BYTES:
            return key
    raise _unread(home, "it is no key")


def _unread(home: Path, why: str) -> SecretRefused:
    return SecretRefused(
        f"The key of the secrets cannot be read: {why}.",
        hint=f"Bring {home / _FILE} back, or remove the secrets and set them anew.",
    )


def _from_keyring(home: Path) -> bytes | None:
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return None
    try:
        found = keyring.get_password(_SERVICE, str(home))
    except (KeyringError, RuntimeError, OSError):
        return None  # there is none on this machine, or nobody unlocked it
    return None if found is None else _decoded(home, found)


def _into_keyring(home: Path, key: bytes) -> bool:
    """True when the keyring has it for sure."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        return False
    text = base64.b64encode(key).decode()
    try:
        keyring.set_password(_SERVICE, str(home), text)
        return keyring.get_password(_SERVICE, str(home)) == text
    except (KeyringError, RuntimeError, OSError):
        return False
