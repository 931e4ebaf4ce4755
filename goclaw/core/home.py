"""GOCLAW_HOME: where things lie, who may read them, and which daemon holds them.

Owns the layout of SPEC 12, the modes (0700, 0600), the lock and daemon.json. Not in here: the
database files, which only ``store/`` names.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from goclaw.core import limits
from goclaw.core.errors import ConfigRefused, HomeInUse, PolicyRefused
from goclaw.core.files import is_text, read_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["DaemonRecord", "Home", "HomeLock", "policy_text"]

_TOKEN_BYTES = 32
_ANOTHER = "Choose another with --home or GOCLAW_HOME."
_ELSEWHERE = (
    "Choose another home with --home or GOCLAW_HOME, or mend this one's permissions or its disk."
)


def policy_text(path: Path) -> str:
    """The text of a policy file, up to its bound and one more; PolicyRefused when there is none."""
    try:
        return read_regular(path, limits.POLICY_BYTES_MAX).decode()
    except FileNotFoundError:
        raise PolicyRefused(f"There is no file {path}.", hint="Check the path.") from None
    except UnicodeDecodeError:
        raise PolicyRefused(f"{path} is not UTF-8 text.", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise PolicyRefused(
            f"{path} cannot be read: {error.strerror}.", hint="Check the path."
        ) from None


# No dataclasses here: their import alone would be a tenth of the bridge's start.
class DaemonRecord(NamedTuple):
    """What run/daemon.json says about the daemon that is ready on this home."""

    pid: int
    boot_id: str
    daemon_id: str
    version: str
    ws: str | None
    socket: str


class HomeLock:
    """The right to be the daemon of a home; held until ``close()`` or the end of the process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def close(self) -> None:
        """Give the home free. Twice is fine."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> HomeLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Home:
    """A home directory; making the object touches nothing."""

    __slots__ = ("root",)

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def locate(cls, option: str | None, environ: Mapping[str, str]) -> Home:
        """``--home`` over GOCLAW_HOME over ``~/.goclaw``; the path is made absolute.

        Raises ConfigRefused where no home can be; nothing is made.
        """
        chosen = option or environ.get("GOCLAW_HOME") or "~/.goclaw"
        if "\0" in chosen:
            raise ConfigRefused("The path of the home holds a zero byte.", hint="Give a real path.")
        try:
            root = Path(os.path.abspath(Path(chosen).expanduser()))
        except RuntimeError:
            raise ConfigRefused(
                f"No home directory is known for {chosen}.", hint="Set GOCLAW_HOME to a path."
            ) from None
        except FileNotFoundError:
            raise ConfigRefused(
                f"The home {chosen} is nowhere: the present directory is gone.",
                hint="Go to one that exists, or give the home's whole path.",
            ) from None
        if not is_text(str(root)):
            raise ConfigRefused(
                f"The path of the home, {str(root)!a}, is not UTF-8 text.", hint=_ANOTHER
            )
        _check_kind(root)
        return cls(root)

    @property
    def config(self) -> Path:
        """config.toml."""
        return self.root / "config.toml"

    @property
    def policy(self) -> Path:
        """policy.toml."""
        return self.root / "policy.toml"

    @property
    def auth_token(self) -> Path:
        """The file of the bearer token."""
        return self.root / "auth.token"

    @property
    def skills(self) -> Path:
        """Installed skills."""
        return self.root / "skills"

    @property
    def logs(self) -> Path:
        """system.jsonl and audit.jsonl."""
        return self.root / "logs"

    @property
    def backups(self) -> Path:
        """Managed backups."""
        return self.root / "backups"

    @property
    def run(self) -> Path:
        """What belongs to the running daemon."""
        return self.root / "run"

    @property
    def daemon_json(self) -> Path:
        """Written when ready, removed at stop."""
        return self.run / "daemon.json"

    def ensure(self, policy_text: str, random_bytes: Callable[[int], bytes]) -> list[str]:
        """Make what is missing and say what was made, in words (U-5); existing files stay.

        Two processes may do it at once: each file appears whole or not at all, and the first one
        counts. A home without a token is new, so it is made private; one that holds a token and is
        open to others is refused, since they may have read it.
        """
        # Imported where they are needed: what only looks for a daemon starts in half the time.
        from goclaw.core.config import TEMPLATE

        made: list[str] = []
        try:
            if not self.root.exists():
                self.root.parent.mkdir(parents=True, exist_ok=True)
                self._make_directory(self.root, made)
            self._check_root(made)
            for folder in (self.skills, self.logs, self.backups, self.run):
                if not folder.is_dir():
                    self._make_directory(folder, made)
            token = random_bytes(_TOKEN_BYTES).hex()
            for path, text, what in (
                (self.config, TEMPLATE, "the settings, all commented out"),
                (self.policy, policy_text, "the default policy"),
                (self.run / "daemon.id", _uuid(random_bytes), "the id of this home"),
                (self.auth_token, token, "the token of programs that connect over TCP"),
            ):
                if not path.exists() and self._make_file(path, text):
                    made.append(f"{path}: {what}")
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            raise ConfigRefused(
                f"The home {self.root} cannot be prepared: {error.strerror}{where}.",
                hint=_ELSEWHERE,
            ) from None
        self.token()
        return made

    def token(self) -> str:
        """The bearer token. Raises ConfigRefused when it is missing, open to others or damaged."""
        path = self.auth_token
        fix = f"Remove {path}; the next start makes a new token."
        try:
            mode = path.stat().st_mode
            text = _small_text(path)
        except (OSError, ValueError) as error:
            raise ConfigRefused(
                f"The token in {path} cannot be read: {_why(error)}.", hint=fix
            ) from None
        if mode & 0o077:
            raise ConfigRefused(
                f"Others may read the token in {path} (mode {stat.S_IMODE(mode):04o}).",
                hint=f"{fix} Or, if you trust it still: chmod 600 {path}",
            )
        if not text or not text.isprintable() or " " in text:
            raise ConfigRefused(f"The token in {path} is damaged.", hint=fix)
        return text

    def renew_token(self, random_bytes: Callable[[int], bytes]) -> str:
        """Put another token in place of the one there is and return it; readers see the old file
        or the whole new one, also after a crash. For the daemon, or whoever holds ``lock``.

        Raises ConfigRefused when it cannot be written; the old one counts on then.
        """
        text = random_bytes(_TOKEN_BYTES).hex()
        try:
            self._replace(self.auth_token, text)
            folder = os.open(self.root, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigRefused(
                f"{self.auth_token} cannot be written: {error.strerror}.", hint=_ELSEWHERE
            ) from None
        return text

    def daemon_id(self) -> str:
        """The UUID of this home, made by ``ensure`` and kept over restarts."""
        import uuid

        path = self.run / "daemon.id"
        try:
            return str(uuid.UUID(_small_text(path)))
        except (OSError, ValueError) as error:
            raise ConfigRefused(
                f"The id in {path} is missing or damaged: {_why(error)}.",
                hint=f"Remove {path} and start again.",
            ) from None

    def adopt(self, daemon_id: str) -> None:
        """Become the home of that id: this one has no history, and a backup brings one.

        Raises ConfigRefused when it cannot be written.
        """
        path = self.run / "daemon.id"
        try:
            os.replace(self._write_temporary(path, daemon_id), path)
        except OSError as error:
            raise ConfigRefused(
                f"{path} cannot be written: {error.strerror}.", hint=_ELSEWHERE
            ) from None

    def lock(self) -> HomeLock:
        """Become the one daemon of this home (S-10).

        Raises HomeInUse with the holder's process id. Children never inherit the lock.
        """
        path = self.run / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigRefused(
                f"The lock {path} cannot be opened: {error.strerror}.",
                hint="Mend its permissions, or choose another home.",
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except BlockingIOError:
            holder = self._holder(descriptor)
            os.close(descriptor)
            raise HomeInUse(
                f"The home {self.root} is in use by "
                + (f"process {holder}." if holder else "another process."),
                hint="Ask it with `goclaw status`, stop it, or choose another home with --home.",
                pid=holder,
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise ConfigRefused(
                f"The file system of {path} has no locks: {error.strerror}.",
                hint="Choose a home on a local disk.",
            ) from None
        return HomeLock(descriptor)

    def socket_path(self, environ: Mapping[str, str]) -> Path:
        """Where the Unix socket goes: run/goclaw.sock, or a short private place when that is too
        long for the kernel. Clients take it from daemon.json.

        Makes the private directory where one is needed.
        """
        import hashlib
        import tempfile

        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16] + ".sock"
        runtime = environ.get("XDG_RUNTIME_DIR", "")
        candidates = [self.run / "goclaw.sock"]
        if runtime.startswith("/"):
            candidates.append(Path(runtime) / "goclaw" / name)
        candidates.append(Path(tempfile.gettempdir()) / f"goclaw-{os.getuid()}" / name)
        for path in candidates:
            if len(os.fsencode(path)) <= limits.SOCKET_PATH_BYTES_MAX and _private(path.parent):
                return path
        raise ConfigRefused(
            f"The path of the home {self.root} is too long for a Unix socket.",
            hint="Choose a shorter path with --home, or set XDG_RUNTIME_DIR.",
        )

    def write_daemon_json(self, record: DaemonRecord) -> None:
        """Say that the daemon is ready; readers see the old file or the whole new one.

        Raises ConfigRefused when it cannot be written.
        """
        text = json.dumps(
            {
                "pid": record.pid,
                "bootId": record.boot_id,
                "daemonId": record.daemon_id,
                "version": record.version,
                "ws": record.ws,
                "socket": record.socket,
            }
        )
        try:
            self._replace(self.daemon_json, text)
        except OSError as error:
            raise ConfigRefused(
                f"{self.daemon_json} cannot be written: {error.strerror}.", hint=_ELSEWHERE
            ) from None

    def read_daemon_json(self) -> DaemonRecord | None:
        """The record of the daemon, or None when there is none or it cannot be understood.

        The daemon may have died without removing it: only a connection tells.
        """
        try:
            document: Any = json.loads(read_regular(self.daemon_json, limits.SMALL_BYTES_MAX))
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        texts = [document.get(key) for key in ("bootId", "daemonId", "version", "socket")]
        known = [text for text in texts if isinstance(text, str)]
        pid, ws = document.get("pid"), document.get("ws")
        if type(pid) is not int or pid <= 0 or len(known) < len(texts):
            return None
        if ws is not None and not isinstance(ws, str):
            return None
        boot, daemon, version, socket = known
        return DaemonRecord(pid, boot, daemon, version, ws, socket)

    def remove_daemon_json(self) -> None:
        """Say that the daemon is gone. Twice is fine."""
        with contextlib.suppress(OSError):
            self.daemon_json.unlink()

    def _holder(self, descriptor: int) -> int | None:
        text = os.pread(descriptor, 32, 0).strip()
        if text.isdigit():
            return int(text)
        record = self.read_daemon_json()
        return record.pid if record else None

    def _check_root(self, made: list[str]) -> None:
        _check_kind(self.root)
        status = self.root.stat()
        if status.st_uid != os.getuid():
            raise ConfigRefused(f"The home {self.root} belongs to another user.", hint=_ANOTHER)
        if not status.st_mode & 0o077:
            return
        if self.auth_token.exists():
            raise ConfigRefused(
                f"The home {self.root} is open to other users "
                f"(mode {stat.S_IMODE(status.st_mode):04o}).",
                hint=f"Close it with: chmod 700 {self.root}",
            )
        self.root.chmod(0o700)
        made.append(f"{self.root}: made private (mode 0700)")

    def _make_directory(self, path: Path, made: list[str]) -> None:
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            if not path.is_dir():
                raise
        else:
            made.append(f"{path}/")

    def _make_file(self, path: Path, text: str) -> bool:
        """True when this call made the file; a link cannot replace what another process made."""
        temporary = self._write_temporary(path, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _replace(self, path: Path, text: str) -> None:
        temporary = self._write_temporary(path, text)
        try:
            os.replace(temporary, path)
        except OSError:
            temporary.unlink()
            raise

    def _write_temporary(self, path: Path, text: str) -> Path:
        import tempfile

        # mkstemp makes the file 0600 under a name that nobody has
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text if text.endswith("\n") else text + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError:  # a full disk
            os.unlink(name)
            raise
        return Path(name)


def _check_kind(root: Path) -> None:
    """A home is a directory, or nothing yet below one; what cannot be looked at is told later."""
    for path in (root, *root.parents):
        try:
            kind = path.stat().st_mode
        except OSError:
            continue
        if not stat.S_ISDIR(kind):
            what = "The home" if path == root else f"The home {root} cannot be made:"
            raise ConfigRefused(f"{what} {path} is not a directory.", hint=_ANOTHER)
        return


def _small_text(path: Path) -> str:
    return read_regular(path, limits.SMALL_BYTES_MAX).decode("ascii").strip()


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error).lower()


def _uuid(random_bytes: Callable[[int], bytes]) -> str:
    import uuid

    return str(uuid.UUID(bytes=random_bytes(16), version=4))


def _private(folder: Path) -> bool:
    """True when the folder is ours alone, making it if need be; a planted one is not used."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    )
