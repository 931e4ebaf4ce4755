"""Backups of a home: made while it is served, checked, brought back (S-4).

Owns what belongs to a backup, its manifest and the refusals of a restore. Not in here: the copy of
the database and its replacement (``store/copies.py``). Everything blocks.

  backups/20261122T190000Z/            made under another name, renamed when it is whole
    manifest.json                      what it is, and the SHA-256 and size of every file
    goclaw.db                          one moment of the database
    files/config.toml policy.toml skills/...

Neither the token nor effects.log is in it: a restore must not bring back a token that was rotated,
nor take away the memory of what was sent (E-8).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import goclaw
from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import ConfigRefused, DatabaseRefused, StorageFailed, UnknownId
from goclaw.core.files import read_regular, sync_folder
from goclaw.store import check_copy, copy_database, database_files, replace_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from goclaw.core.home import Home

__all__ = ["Backup", "Restored", "check_room", "create", "listed", "restore", "verify"]

_MANIFEST: Final = "manifest.json"
_FORMAT: Final = 1
_FILES: Final = "files"
_NAME: Final = re.compile(r"\d{8}T\d{6}Z(-\d{1,4})?", re.ASCII)
_PARTIAL: Final = ".partial-"


@dataclass(frozen=True, slots=True)
class Backup:
    """A whole backup: its folder below ``backups/`` and what its manifest says."""

    name: str
    path: Path
    created_at_ms: int
    version: str
    schema: int
    daemon_id: str
    size: int
    """Bytes of all its files."""
    files: dict[str, tuple[int, str]] = field(repr=False)
    """Path below the folder to (bytes, SHA-256)."""

    def to_json(self) -> dict[str, Any]:
        """A line of `goclaw backup list --json`."""
        return {
            "name": self.name,
            "path": str(self.path),
            "createdAt": rfc3339(self.created_at_ms),
            "version": self.version,
            "schema": self.schema,
            "daemonId": self.daemon_id,
            "bytes": self.size,
        }


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: where the replaced database lies, None when there was none."""

    backup: Backup
    kept: Path | None


def create(home: Home, now_ms: int) -> Backup:
    """Make a backup of one moment, also while the daemon writes. It is listed once it is whole.

    StorageFailed when the disk has no room or refuses: then nothing is left of it. What an earlier
    one left that was killed goes first; so one at a time.
    """
    root, daemon_id = home.backups, home.daemon_id()
    _clear(root)
    name = _free_name(root, now_ms)
    partial = root / f"{_PARTIAL}{name}"
    try:
        check_room(home)
        partial.mkdir(mode=0o700)
        copy_database(home.root, partial / database_files(partial)[0].name)
        for source, relative in _settings(home):
            _copy(source, partial / _FILES / relative)
        files = {str(path.relative_to(partial)): _digest(path) for path in _walk(partial)}
        backup = Backup(
            name, root / name, now_ms, goclaw.__version__,
            check_copy(database_files(partial)[0]), daemon_id,
            sum(size for size, _ in files.values()), files,
        )  # fmt: skip
        _write_manifest(partial, backup)
        os.rename(partial, root / name)
        sync_folder(root)
    except OSError as error:
        _remove(partial)
        raise StorageFailed(
            f"The backup could not be written to {root}: {error.strerror}.",
            hint="Make room or mend the disk, then try again.",
        ) from error
    except BaseException:
        _remove(partial)
        raise
    return backup


def listed(home: Home) -> list[Backup]:
    """The backups of a home, newest first. A folder without a readable manifest is none."""
    found = []
    with contextlib.suppress(OSError):
        for path in home.backups.iterdir():
            if _NAME.fullmatch(path.name):
                with contextlib.suppress(DatabaseRefused):
                    found.append(_read(path))
    return sorted(found, key=lambda one: (one.created_at_ms, one.name), reverse=True)


def verify(home: Home, name: str) -> Backup:
    """Read all of a backup; DatabaseRefused says which file is missing, changed or damaged.

    UnknownId when there is no backup of that name.
    """
    backup = _find(home, name)
    for relative, (size, digest) in backup.files.items():
        path = backup.path / relative
        try:
            found = _digest(path)
        except OSError as error:
            raise _broken(backup, f"{relative} cannot be read ({error.strerror})") from error
        if found != (size, digest):
            raise _broken(backup, f"{relative} is not what was backed up")
    extra = {str(path.relative_to(backup.path)) for path in _walk(backup.path)}
    extra -= {*backup.files, _MANIFEST}
    if extra:
        raise _broken(backup, f"{min(extra)} does not belong to it")
    try:
        check_copy(database_files(backup.path)[0])
    except DatabaseRefused as error:
        raise _broken(backup, error.message) from error
    return backup


def restore(home: Home, name: str, now_ms: int, *, settings: bool = False) -> Restored:
    """Put a backup's database in the place of the home's; what it replaces is kept.

    ``settings``: config, policy and skills, too. The caller holds the home's lock. effects.log
    stays, so that nothing noted there is sent again (E-8). Refused, with nothing changed: a damaged
    backup, one of a newer schema (DatabaseRefused), one of another home unless this one has no
    database (ConfigRefused). A kill in the middle is carried to its end by the next start.
    """
    backup = verify(home, name)
    database = database_files(home.root)[0]
    had_one = database.exists()
    if had_one and backup.daemon_id != home.daemon_id():
        raise ConfigRefused(
            f"The backup {name} is of another home (its daemon is {backup.daemon_id}).",
            hint="Restore it into a home without a database, or choose the right one with --home.",
        )
    keep = home.backups / _free_name(home.backups, now_ms, "replaced-")
    if not had_one:
        home.adopt(backup.daemon_id)
    if settings:
        _bring_settings(home, backup, keep)
    replace_database(home.root, database_files(backup.path)[0], keep)
    return Restored(backup, keep if had_one else None)


# -- what belongs to it ------------------------------------------------------------------------


def _settings(home: Home) -> Iterator[tuple[Path, str]]:
    """Regular files only: a link would bring in what is not the home's."""
    for path in (home.config, home.policy):
        if _is_regular(path):
            yield path, path.name
    if home.skills.is_dir() and not home.skills.is_symlink():
        for path in _walk(home.skills):
            yield path, f"{home.skills.name}/{path.relative_to(home.skills)}"


def _walk(folder: Path) -> Iterator[Path]:
    count = 0
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = folder / where / name
            if not _is_regular(path):
                continue
            count += 1
            if count > limits.BACKUP_FILES_MAX:
                raise StorageFailed(
                    f"{folder} holds more than {limits.BACKUP_FILES_MAX} files.",
                    hint="Move away what does not belong there.",
                )
            yield path


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _bring_settings(home: Home, backup: Backup, keep: Path) -> None:
    """File by file, each whole; those that are replaced are kept beside the database."""
    for relative in backup.files:
        place, _, rest = relative.partition("/")
        if place != _FILES:
            continue
        target = home.root / rest
        if target.exists():
            _copy(target, keep / _FILES / rest)
        new = target.with_name(f".{target.name}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        _copy(backup.path / relative, new)
        os.replace(new, target)
        sync_folder(target.parent)


# -- files -------------------------------------------------------------------------------------


def check_room(home: Home) -> None:
    """StorageFailed when a copy of the database would fill the disk."""
    need = sum(path.stat().st_size for path in database_files(home.root)[:2] if path.exists())
    room = shutil.disk_usage(home.backups).free
    if room < need + limits.BACKUP_ROOM_BYTES:
        raise StorageFailed(
            f"A backup needs about {need} bytes and leaves {limits.BACKUP_ROOM_BYTES} free; "
            f"{home.backups} has {room}.",
            hint="Make room, or remove an old backup.",
        )


def _copy(source: Path, target: Path) -> None:
    size = source.stat().st_size
    if size > limits.BACKUP_FILE_BYTES_MAX:
        raise StorageFailed(
            f"{source} has {size} bytes; {limits.BACKUP_FILE_BYTES_MAX} fit into a backup.",
            hint="Move it away.",
        )
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(read_regular(source, limits.BACKUP_FILE_BYTES_MAX))
        file.flush()
        os.fsync(file.fileno())


def _digest(path: Path) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(limits.COPY_BYTES):
            size += len(piece)
            digest.update(piece)
    return size, digest.hexdigest()


def _clear(root: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        for path in root.iterdir():
            if path.name.startswith(_PARTIAL):
                _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _free_name(root: Path, now_ms: int, kind: str = "") -> str:
    base = kind + re.sub(r"[-:]|\.\d+", "", rfc3339(now_ms))
    for number in range(10_000):
        name = f"{base}-{number}" if number else base
        if not (root / name).exists():
            return name
    raise StorageFailed(f"{root} has 10,000 folders of one second.", hint="Wait a second.")


# -- the manifest ------------------------------------------------------------------------------


def _write_manifest(folder: Path, backup: Backup) -> None:
    text = json.dumps(
        {
            "format": _FORMAT,
            "createdAtMs": backup.created_at_ms,
            "version": backup.version,
            "schema": backup.schema,
            "daemonId": backup.daemon_id,
            "files": {
                path: {"bytes": size, "sha256": digest}
                for path, (size, digest) in sorted(backup.files.items())
            },
        },
        indent=1,
    )
    path = folder / _MANIFEST
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def _find(home: Home, name: str) -> Backup:
    path = home.backups / name
    if not _NAME.fullmatch(name) or not path.is_dir():
        raise UnknownId(
            f"There is no backup {name!r}.", hint="`goclaw backup list` names them.",
            what="backup", id=name,
        )  # fmt: skip
    return _read(path)


def _read(path: Path) -> Backup:
    try:
        found = json.loads(read_regular(path / _MANIFEST, limits.BACKUP_FILE_BYTES_MAX))
        if found["format"] != _FORMAT:
            raise DatabaseRefused(
                f"The backup {path} has the format {found['format']!r}; this program reads "
                f"{_FORMAT}.",
                hint="Use the goclaw that made it.",
            )
        files = {
            str(name): (int(one["bytes"]), str(one["sha256"]))
            for name, one in found["files"].items()
        }
        if any(".." in Path(name).parts or Path(name).is_absolute() for name in files):
            raise ValueError("a path that leads out of the backup")
        return Backup(
            path.name, path, int(found["createdAtMs"]), str(found["version"]),
            int(found["schema"]), str(found["daemonId"]),
            sum(size for size, _ in files.values()), files,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatabaseRefused(
            f"The manifest of the backup {path} cannot be read.", hint="Use another backup."
        ) from error


def _broken(backup: Backup, why: str) -> DatabaseRefused:
    return DatabaseRefused(
        f"The backup {backup.name} is broken: {why.rstrip('.')}.", hint="Use another one."
    )
