"""`goclaw doctor`: what is wrong with a home and its machine, and how to mend it (U-7).

Owns the checks. Not in here: mending; a check changes nothing, and a daemon may serve meanwhile.
Everything blocks.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import stat
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Final, Literal

from goclaw import _fast
from goclaw.core import config, limits
from goclaw.core.clock import rfc3339
from goclaw.core.errors import DatabaseRefused, GoclawError
from goclaw.core.home import policy_text
from goclaw.policy import document
from goclaw.protocol.methods import NAMES
from goclaw.skills.catalog import Catalog
from goclaw.store import Archive, database_files, database_state, kept_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from goclaw.core.clock import Clock
    from goclaw.core.home import Home

__all__ = ["Check", "Patient", "examine"]

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. ``fix`` says what to do, empty when there is nothing to do."""

    name: str
    status: Status
    detail: str
    fix: str = ""

    def to_json(self) -> dict[str, str]:
        """An element of ``checks`` in `goclaw doctor --json`."""
        return {"name": self.name, "status": self.status, "detail": self.detail, "fix": self.fix}


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at. ``check_config``: refuses what a configuration cannot judge by itself;
    ``is_served``: does a daemon answer there?"""

    home: Home
    environ: Mapping[str, str]
    clock: Clock
    check_config: Callable[[config.Config], None]
    is_served: bool


def examine(patient: Patient) -> list[Check]:
    """Every check, in the order of a start; one that breaks is a finding and stops no other."""
    found: list[Check] = []
    for name, check in _CHECKS.items():
        try:
            found.append(check(patient))
        except GoclawError as error:
            found.append(Check(name, "fail", error.message, error.hint))
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            found.append(
                Check(
                    name, "fail", f"{where}{error.strerror}.", "Mend its permissions or the disk."
                )
            )
    return found


def _home(patient: Patient) -> Check:
    root = patient.home.root
    if not root.exists():
        return Check(
            "home",
            "warn",
            f"There is no home {root} yet.",
            "`goclaw init`, or any first run, makes it.",
        )
    status = root.stat()
    if status.st_uid != os.getuid():
        return Check(
            "home", "fail", f"{root} belongs to another user.", "Choose another home with --home."
        )
    if status.st_mode & 0o077:
        return Check(
            "home", "fail", f"{root} is open to others (mode {stat.S_IMODE(status.st_mode):04o}).",
            f"chmod 700 {root}",
        )  # fmt: skip
    for folder in (patient.home.skills, patient.home.logs, patient.home.backups, patient.home.run):
        if folder.exists() and folder.stat().st_mode & 0o700 != 0o700:
            return Check("home", "fail", f"{folder} cannot be written.", f"chmod 700 {folder}")
    return Check("home", "ok", f"{root}, mode 0700")


def _permissions(patient: Patient) -> Check:
    """The files that nobody else may read."""
    paths = [patient.home.auth_token, *database_files(patient.home.root)]
    if not any(path.exists() for path in paths):
        return Check("permissions", "ok", "nothing there yet")
    if patient.home.auth_token.exists():
        patient.home.token()
    for path in paths:
        if path.exists() and path.stat().st_mode & 0o077:
            return Check("permissions", "fail", f"Others may read {path}.", f"chmod 600 {path}")
    return Check("permissions", "ok", "token and database are private")


def _config(patient: Patient) -> Check:
    settings = config.load(patient.home.root, patient.environ)
    return Check("config", "ok", f"{settings.queue.lanes} lanes, {settings.store.synchronous}")


def _brains(patient: Patient) -> Check:
    settings = config.load(patient.home.root, patient.environ)
    patient.check_config(settings)
    kept = {secret.name: secret for secret in kept_secrets(patient.home.root)}
    for brain in settings.brains:
        if brain.secret is None:
            continue
        found = kept.get(brain.secret)
        if found is None or brain.name not in found.tools or not found.hosts:
            why = "does not exist" if found is None else "is not bound to that brain and its host"
            return Check(
                "brains", "fail", f"{brain.name} takes its key from {brain.key}, which {why}.",
                f"goclaw secret set {brain.secret} --host HOST --tool {brain.name}",
            )  # fmt: skip
    return Check("brains", "ok", f"the default is {settings.brain.default}")


def _policy(patient: Patient) -> Check:
    path = patient.home.policy
    if not path.exists():
        return Check("policy", "ok", "none yet; a start writes the default")
    home = os.path.realpath(patient.home.root)
    policy = document.load(policy_text(path), home=home, methods=NAMES)
    return Check("policy", "ok", f"version {policy.version[:12]}")


def _database(patient: Patient) -> Check:
    path = database_files(patient.home.root)[0]
    if not path.exists():
        return Check("database", "ok", "none yet; a start makes it")
    state = database_state(patient.home.root, deep=path.stat().st_size <= limits.DOCTOR_READ_BYTES)
    if state.damage:
        raise DatabaseRefused(
            f"{path} is damaged ({state.damage}).",
            hint="Stop the daemon and `goclaw restore` a backup.",
        )
    if state.missing:
        return Check(
            "database", "warn", f"{path} lacks {state.missing} migrations of this program.",
            "Back it up; the next start of the daemon migrates it.",
        )  # fmt: skip
    looked = "read whole" if state.is_whole else "not read whole, for its size"
    return Check("database", "ok", f"schema {state.schema}, {path.stat().st_size} bytes, {looked}")


def _skills(patient: Patient) -> Check:
    catalog = Catalog(patient.home.skills)
    if catalog.problems:
        first = catalog.problems[0]
        return Check(
            "skills", "warn",
            f"{len(catalog.problems)} are not usable: {first.folder}: {first.error}",
            "Mend its skill.toml, or remove the folder.",
        )  # fmt: skip
    for skill in catalog:
        skill.read_module()
    return Check("skills", "ok", f"{len(catalog)} usable")


def _port(patient: Patient) -> Check:
    address = config.load(patient.home.root, patient.environ).listen.tcp
    if address is None:
        return Check("port", "ok", "only the Unix socket is served")
    if patient.is_served or address.port == 0:
        served = "the daemon has it" if patient.is_served else "any free one"
        return Check("port", "ok", f"{address.host}:{address.port}, {served}")
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address.host, address.port))
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise
        return Check(
            "port", "fail", f"{address.host}:{address.port}: {error.strerror}.",
            "Set another listen.address in config.toml, or 127.0.0.1:0 for any free port.",
        )  # fmt: skip
    return Check("port", "ok", f"{address.host}:{address.port} is free")


def _daemon(patient: Patient) -> Check:
    record = patient.home.read_daemon_json()
    if patient.is_served and record is not None:
        return Check("daemon", "ok", f"process {record.pid} answers, version {record.version}")
    if record is not None:
        return Check(
            "daemon", "warn",
            f"The daemon {record.pid} is gone and left {patient.home.daemon_json}.",
            "The next start clears it away; `goclaw events _system` will tell what it found.",
        )  # fmt: skip
    return Check("daemon", "ok", "none is running")


def _clock(patient: Patient) -> Check:
    """Calendar values use wall time (Q-6): a clock behind the log fires them late."""
    now = patient.clock.wall_ms()
    path = database_files(patient.home.root)[0]
    if path.exists():
        archive = Archive(patient.home.root)
        try:
            ((latest,),) = archive.fetch("latest_event_at")
        finally:
            archive.close()
        if latest is not None and latest > now + limits.CLOCK_BACK_MS_MAX:
            return Check(
                "clock", "warn",
                f"It is {rfc3339(now)} here, and the newest event is of {rfc3339(latest)}.",
                "Set the clock; delayed and recurring tasks go by it.",
            )  # fmt: skip
    if now < _RELEASED_MS:
        return Check("clock", "warn", f"It is {rfc3339(now)} here.", "Set the clock.")
    return Check("clock", "ok", rfc3339(now))


def _disk(patient: Patient) -> Check:
    there = patient.home.root
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < limits.DISK_ROOM_BYTES:
        return Check(
            "disk", "fail" if free < limits.WAL_BYTES_MAX else "warn",
            f"{free} bytes are free at {there}.", "Make room: at a full disk no work is accepted.",
        )  # fmt: skip
    return Check("disk", "ok", f"{free} bytes free")


def _versions(_: Patient) -> Check:
    names = ("goclaw", "apsw", "orjson", "wasmtime", "websockets")
    known = [f"Python {sys.version.split()[0]}"]
    for name in names:
        try:
            known.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            if name != "goclaw":  # run from its sources
                return Check(
                    "versions",
                    "fail",
                    f"The package {name} is not installed.",
                    "Install goclaw again.",
                )
    return Check("versions", "ok", ", ".join(known))


def _native(_: Patient) -> Check:
    if _fast.NATIVE:
        return Check("native", "ok", _fast.describe())
    return Check(
        "native", "warn", f"It runs in plain Python: {_fast.describe()}.",
        "Install a C compiler and then goclaw again; unset GOCLAW_PURE. It is right, only slower.",
    )  # fmt: skip


_RELEASED_MS: Final = 1_767_225_600_000  # 2026-01-01: no clock that is right says less

_CHECKS: Final[dict[str, Callable[[Patient], Check]]] = {
    "home": _home,
    "permissions": _permissions,
    "config": _config,
    "policy": _policy,
    "database": _database,
    "skills": _skills,
    "brains": _brains,
    "port": _port,
    "daemon": _daemon,
    "clock": _clock,
    "disk": _disk,
    "versions": _versions,
    "native": _native,
}
