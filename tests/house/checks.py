"""The rules of the house as functions: source files in, sentences about violations out.

Owns the rules and their data (floors, callers, allow-lists with reasons). Not in here: the running
of them over the tree and over planted violations (``test_*.py`` beside this file).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    _Judge = Callable[[str], bool]

ROOT = Path(__file__).resolve().parents[2]

# -- data -----------------------------------------------------------------------------------------

FLOORS = {
    "_fast": 0,
    "_pure": 0,
    "core": 1,
    "store": 2,
    "policy": 2,
    "protocol": 2,
    "engine": 3,
    "net": 3,
    "tools": 4,
    "skills": 4,
    "gateway": 4,
    "brains": 5,
    "ops": 5,
    "daemon": 6,
    "client": 7,
    "conformance": 7,
    "testing": 7,
    "cli": 8,
    "tui": 8,
    "bridges": 8,
    "worker": 8,
    "__main__": 9,
}

# Rooms that may use less than all below them: they speak the protocol through the client.
ONLY = {
    "": {"client", "core"},  # goclaw/__init__.py: goclaw.Client
    "client": {"core", "protocol"},
    "conformance": {"core"},  # judges the wire without sharing its mistakes
    "tui": {"client", "core", "protocol"},
    "bridges": {"client", "core", "protocol"},
    "worker": {"client"},  # goclaw/worker.py: a public name
}

# Siblings that may meet, with the reason.
MEETINGS = {
    ("cli", "bridges"): "`goclaw acp` and `goclaw mcp` are verbs of the command line",
    ("cli", "tui"): "`goclaw tui` is a verb of the command line",
    ("_fast", "_pure"): "the door falls back to the twin",
}

NOUNS = {
    "writer": "goclaw/store/",
    "open_writer": "goclaw/store/",
    "frame": "goclaw/protocol/",
    "ring": "goclaw/engine/hub.py",
    "rules": "goclaw/policy/",
}
DOOR_ANYWHERE = {"NATIVE", "WHY_PURE", "describe"}

# apsw's callers: the store, and the twin of the writer.
APSW = ("goclaw/store/", "goclaw/_pure/writer.py")
SECOND_SQLITE = {"sqlite3", "_sqlite3", "pysqlite3", "aiosqlite", "sqlalchemy", "dbm"}

# Errors whose sentence is not enough: what to do next is the operator's to know.
HINTED = {
    "AlreadyResolved",
    "ConfigRefused",
    "CursorAhead",
    "DaemonGone",
    "DatabaseRefused",
    "HomeInUse",
    "IdempotencyConflict",
    "ListenerFailed",
    "PolicyDenied",
    "PolicyRefused",
    "QueueFull",
    "ReplayGap",
    "SessionUnknown",
    "ShuttingDown",
    "StorageFailed",
    "UnknownId",
    "UsageError",
}

CLOCKS = {
    "time": {
        "time",
        "time_ns",
        "monotonic",
        "monotonic_ns",
        "perf_counter",
        "perf_counter_ns",
        "sleep",
        "clock_gettime",
        "clock_gettime_ns",
        "localtime",
        "gmtime",
    },
    "asyncio": {"sleep"},
    "uuid": {"uuid1", "uuid4"},
    "os": {"urandom", "getrandom"},
    "random": {"*"},
    "secrets": {"*"},
    "datetime": {"datetime.now", "datetime.utcnow", "datetime.today", "date.today"},
}
CLOCKS_ALLOWED = {
    ("goclaw/core/clock.py", "*"): "it is the clock",
    ("goclaw/core/faults.py", "time.sleep"): "a delay of a fault point blocks as a slow disk would",
    ("goclaw/_pure/writer.py", "time.monotonic_ns"): "measures its own flushes, as its twin does",
}

# The edges where any error is caught, logged and counted: path and function, with the reason.
EDGES: dict[str, str] = {
    "goclaw/cli/__init__.py:main": "the program's edge: no traceback, exit 70, the log has it",
    "goclaw/cli/embedded.py:Embedded._run": "a thread's edge: start() or join() raises it again",
    "goclaw/gateway/connection.py:Connection._answer": "a request gets an answer, come what may",
    "goclaw/skills/wasi.py:Host.enter": "native frames lie above; Sandbox.call raises it again",
    "goclaw/engine/effects.py:_Entry._carry_out": "a tool's fault leaves the effect unknown",
    "goclaw/client/worker.py:Worker._outcome": "a handler's code: its fault fails the attempt",
    "goclaw/client/worker.py:_in_thread": "a thread's edge: the worker's loop raises it again",
    "goclaw/engine/worker.py:LiveAttempt._outcome": "a brain's code: its fault fails the attempt",
    "goclaw/engine/hub.py:Hub.publish": "the other observers are told; then it is raised",
    "goclaw/core/services.py:_kept": "a service's edge: said with its stack, and begun again",
}

# No side door: a Runner is called by the engine alone, the gate by a Runner, a tool by the gate,
# and what the gate built by the journal. One thing is done without a RUNNING task and its token: a
# tool is asked whether an unknown effect happened, which reads, is decided on and audited.
CALLS = {
    "run_attempt": ("goclaw/engine/", "goclaw/daemon.py"),
    "gate.call": ("goclaw/engine/", "goclaw/brains/", "goclaw/daemon.py"),
    "origin.run": ("goclaw/tools/gate.py",),
    "origin.probe": ("goclaw/tools/gate.py",),
    "origin.reach": ("goclaw/tools/gate.py",),
    "origin.start": ("goclaw/tools/gate.py",),
    "call.dispatch": ("goclaw/engine/effects.py",),
    "call.probe": ("goclaw/engine/effects.py", "goclaw/engine/settlement.py"),
}

# Fault points that are named and not yet placed; each leaves this list with its call.
POINTS_PENDING: set[str] = set()

# Programs and queries that only tests call so far, and who will.
SQL_PENDING = {
    "policy_get": "goclaw policy history (A-3)",
    "schedule_of": "what stands for a recurring task (Q-12)",
}

SQL = re.compile(
    r"\bSELECT\b.+\bFROM\b|\bINSERT\s+(OR\s+\w+\s+)?INTO\b|\bUPDATE\s+\w+\s+SET\b|\bDELETE\s+FROM\b"
    r"|\A\s*(?i:select\s.+\sfrom\s+\w+|insert\s+into\s|update\s+\w+\s+set\s+\w+\s*=|delete\s+from\s)",
    re.DOTALL,
)
DATABASE_FILE = re.compile(r"goclaw\.db|effects\.log|(-wal|-shm)\Z")

# Brackets keep this file from naming what it forbids.
LEFTOVERS = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X|HA[C]K)\b")
REGISTRIES = re.compile(
    r"[p]ypi\.org|[p]ythonhosted\.org|registry\.[n]pmjs|registry\.[y]arnpkg|crates\.[i]o"
    r"|proxy\.[g]olang\.org"
)


# -- sources --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A Python file of the tree: its path from the root, with slashes, and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first name under goclaw; "" for goclaw/__init__.py."""
        parts = self.path.removesuffix(".py").split("/")
        return "" if parts[1] == "__init__" else parts[1]

    @property
    def module(self) -> str:
        """The dotted name."""
        return self.path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")

    def at(self, node: ast.AST) -> str:
        """``path:line`` of a node."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}"


def sources(root: Path, *folders: str) -> list[Source]:
    """Every Python file under the folders of a tree."""
    found = []
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            text = file.read_text("utf-8")
            name = file.relative_to(root).as_posix()
            found.append(Source(name, text, ast.parse(text, name)))
    return found


def tracked(root: Path) -> list[Path]:
    """The files that land: what git tracks or would add; in an unpacked archive, all of them."""
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]
    try:
        listing = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return sorted(file for file in root.rglob("*") if file.is_file())
    files = [root / name.decode() for name in listing.split(b"\0") if name]
    return [file for file in files if file.is_file()]


_LATE_IMPORTS = ("import_module", "__import__")


def imports(source: Source) -> Iterator[tuple[ast.AST, str, str]]:
    """(node, module, name) of every import, relative ones resolved, import_module() included."""
    package = source.module.split(".")
    if not source.path.endswith("__init__.py"):
        package = package[:-1]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            for alias in node.names:
                yield node, base, alias.name
        elif isinstance(node, ast.Call) and _dotted(node.func).endswith(_LATE_IMPORTS):
            yield from ((node, str(getattr(name, "value", "")), "") for name in node.args[:1])


def strings(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every text in the code but docstrings; the values of an f-string read as ``?``."""
    skip: set[int] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skip.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "?" for part in node.values]
            skip.update(id(part) for part in node.values)
            yield node, "".join(str(part) for part in parts)
        if isinstance(node, ast.Constant) and id(node) not in skip:
            if isinstance(node.value, str):
                yield node, node.value
            elif isinstance(node.value, bytes):
                yield node, node.value.decode("latin-1")


def _dotted(node: ast.AST) -> str:
    """``a.b.c`` of a chain of names; "" at its root when it is no name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


# -- floors and the door --------------------------------------------------------------------------


def floors(tree: Iterable[Source]) -> list[str]:
    """Imports go down only; siblings do not meet; some rooms use less than all below them."""
    found = []
    for source in tree:
        room = source.room
        if room and room not in FLOORS:
            found.append(f"{source.path}: {room} stands on no floor")
            continue
        for node, module, name in imports(source):
            target = _room_of(module, name)
            if target is None or target == room:
                continue
            if target not in FLOORS:
                found.append(f"{source.at(node)}: {target} stands on no floor")
            elif (room, target) in MEETINGS:
                continue
            elif room in ONLY and target not in ONLY[room]:
                found.append(f"{source.at(node)}: {room or 'goclaw'} may not use {target}")
            elif room and FLOORS[target] == FLOORS[room]:
                found.append(f"{source.at(node)}: siblings {room} and {target} meet")
            elif room and FLOORS[target] > FLOORS[room]:
                found.append(f"{source.at(node)}: {room} reaches up to {target}")
    return found


def _room_of(module: str, name: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "goclaw":
        return None
    if len(parts) > 1:
        return parts[1]
    # `from goclaw import x`: a room, or a name of the package itself
    return name if name in FLOORS else None


def native_floors(root: Path) -> list[str]:
    """Native sources know nothing above them."""
    pattern = re.compile(r"^\s*(?:from|import|cimport)\s+(goclaw[\w.]*)", re.MULTILINE)
    return [
        f"goclaw/_fast/{file.name}: reaches up to {match[1]}"
        for file in _native(root)
        for match in pattern.finditer(file.read_text("utf-8"))
        if not match[1].startswith("goclaw._fast")
    ]


def _native(root: Path) -> list[Path]:
    folder = root / "goclaw/_fast"
    return sorted(file for file in folder.glob("*") if file.suffix in (".pyx", ".pxd", ".pxi"))


def door(tree: Iterable[Source]) -> list[str]:
    """goclaw._fast is imported as a package, each noun by its one caller, the twin by nobody."""
    found = []
    for source in tree:
        if source.room in ("_fast", "_pure"):
            continue
        for node, module, name in imports(source):
            whole = f"{module}.{name}" if name else module
            if whole == "goclaw._pure" or whole.startswith("goclaw._pure."):
                found.append(f"{source.at(node)}: the twin is chosen by goclaw._fast alone")
            elif module.startswith("goclaw._fast."):
                found.append(f"{source.at(node)}: {module} is behind the door goclaw._fast")
            elif module == "goclaw._fast" and name:
                found += _noun(source, node, name)
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and _dotted(node.value).endswith("_fast"):
                found += _noun(source, node, node.attr)
    return found


def _noun(source: Source, node: ast.AST, name: str) -> list[str]:
    if name in DOOR_ANYWHERE or (name in NOUNS and source.path.startswith(NOUNS[name])):
        return []
    if name not in NOUNS:
        return [f"{source.at(node)}: goclaw._fast has no {name}"]
    return [f"{source.at(node)}: {name} belongs to {NOUNS[name]}"]


# -- SQLite and SQL -------------------------------------------------------------------------------


def one_sqlite(tree: Iterable[Source]) -> list[str]:
    """No second SQLite in the process, and apsw only in the store."""
    found = []
    for source in tree:
        for node, module, _name in imports(source):
            package = module.split(".")[0]
            if package in SECOND_SQLITE:
                found.append(f"{source.at(node)}: {package} loads a second SQLite")
            elif package == "apsw" and not source.path.startswith((*APSW, "tests/", "bench/")):
                found.append(f"{source.at(node)}: apsw belongs to the store")
    return found


def database_names(tree: Iterable[Source]) -> list[str]:
    """Only the store names the database files."""
    return [
        f"{source.at(node)}: {text!r} is a file of the store"
        for source in tree
        if source.room != "store"
        for node, text in strings(source)
        if DATABASE_FILE.search(text)
    ]


def sql(tree: Iterable[Source]) -> list[str]:
    """SQL stands in queries.sql and the migrations, not in Python."""
    return [
        f"{source.at(node)}: SQL belongs in store/queries.sql"
        for source in tree
        for node, text in strings(source)
        if SQL.search(text)
    ]


def native_sql(root: Path) -> list[str]:
    """The same for native sources: they are handed their texts at construction."""
    code = {
        file.name: re.sub(r'"""(?:.|\n)*?"""|#[^\n]*', "", file.read_text("utf-8"))
        for file in _native(root)
    }
    return [
        f"goclaw/_fast/{name}: SQL belongs in store/queries.sql: {literal}"
        for name, text in code.items()
        for literal in re.findall(r'"([^"\n]*)"', text)
        if SQL.search(literal)
    ]


# -- time, chance, errors -------------------------------------------------------------------------


def clocks(tree: Iterable[Source]) -> list[str]:
    """Time and randomness come from core/clock.py (I-8); a bare asyncio.sleep(0) only yields."""
    found = []
    for source in tree:
        modules, names = _aliases(source)
        yields = {
            id(node.func)
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Call)
            and [getattr(argument, "value", None) for argument in node.args] == [0]
            and _resolve(node.func, modules, names) == "asyncio.sleep"
        }
        inner: set[int] = set()
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Attribute | ast.Name) or id(node) in inner | yields:
                continue
            full = _resolve(node, modules, names)
            if isinstance(node, ast.Attribute):
                inner.add(id(node.value))
            if full and _is_clock(full) and not _clock_allowed(source.path, full):
                found.append(f"{source.at(node)}: {full} is the business of core/clock.py")
    return found


def _aliases(source: Source) -> tuple[dict[str, str], dict[str, str]]:
    """The names under which watched modules, and names of them, are known in a file."""
    modules: dict[str, str] = {}
    names: dict[str, str] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name in CLOCKS:
                    modules[alias.asname or alias.name] = alias.name
        elif isinstance(node, ast.ImportFrom) and node.module in CLOCKS and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return modules, names


def _resolve(node: ast.AST, modules: dict[str, str], names: dict[str, str]) -> str:
    first, _dot, rest = _dotted(node).partition(".")
    base = names.get(first) or modules.get(first)
    if base is None:
        return ""
    return f"{base}.{rest}" if rest else base


def _is_clock(full: str) -> bool:
    module, _dot, rest = full.partition(".")
    watched = CLOCKS.get(module, set())
    return bool(rest) and ("*" in watched or rest in watched)


def _clock_allowed(path: str, full: str) -> bool:
    return (path, "*") in CLOCKS_ALLOWED or (path, full) in CLOCKS_ALLOWED


def broad_excepts(tree: Iterable[Source]) -> list[str]:
    """``except Exception`` and its kin only at the named edges, or where it raises again."""
    found = []
    broad = {"Exception", "BaseException"}
    for source in tree:
        for function, node in _with_function(source.tree):
            caught: Sequence[ast.AST] = ()
            if isinstance(node, ast.ExceptHandler):
                last = node.body[-1]
                if isinstance(last, ast.Raise) and last.exc is None:
                    continue
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                caught = [kind or ast.Name("BaseException") for kind in kinds]
            elif isinstance(node, ast.Call) and _dotted(node.func).endswith("suppress"):
                caught = node.args
            named = f"{source.path}:{function}"
            if broad & {_dotted(kind) for kind in caught} and named not in EDGES:
                found.append(f"{source.at(node)}: {function} is no named edge for any error")
    return found


def _with_function(tree: ast.AST, name: str = "module") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the dotted name of the function it stands in."""
    for node in ast.iter_child_nodes(tree):
        inner = name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = node.name if name == "module" else f"{name}.{node.name}"
        yield name, node
        yield from _with_function(node, inner)


# -- doors of the engine, purity, fault points ----------------------------------------------------


def side_doors(tree: Iterable[Source]) -> list[str]:
    """No code path runs a brain or a tool without a running task."""
    found = []
    for source in tree:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            called = _dotted(node.func)
            for name, allowed in CALLS.items():
                hit = called == name or called.endswith((f".{name}", f"_{name}"))
                if hit and not source.path.startswith(allowed):
                    found.append(f"{source.at(node)}: {called}() is a side door")
    return found


def no_io(tree: Iterable[Source]) -> list[str]:
    """protocol and policy decide; they await, open and connect nothing."""
    found = []
    for source in tree:
        if source.room not in ("protocol", "policy"):
            continue
        for node, module, _name in imports(source):
            if module.split(".")[0] in ("asyncio", "socket", "ssl", "subprocess", "threading"):
                found.append(f"{source.at(node)}: {source.room} imports {module}")
        for node in ast.walk(source.tree):
            if isinstance(node, ast.AsyncFunctionDef):
                found.append(f"{source.at(node)}: {source.room} has an async def")
            elif isinstance(node, ast.Call):
                called = _dotted(node.func)
                if called in ("open", "os.open", "io.open") or called.endswith(
                    (".open", ".read_text", ".read_bytes", ".write_text", ".write_bytes")
                ):
                    found.append(f"{source.at(node)}: {source.room} opens a file")
    return found


def hints(tree: Iterable[Source]) -> list[str]:
    """Errors that a person meets say what to do next."""
    return [
        f"{source.at(node)}: {_dotted(node.func)} without a hint"
        for source in tree
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and _dotted(node.func).split(".")[-1] in HINTED
        and "hint" not in {keyword.arg for keyword in node.keywords}
    ]


def incomplete_errors(tree: Iterable[Source], needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Errors of the wire carry the details that PROTOCOL 2.4 promises; ``needs``: by class."""
    found = []
    for source in tree:
        if source.room == "client":
            continue  # what it raises by itself, no wire has carried
        for node in ast.walk(source.tree):
            name = _dotted(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            if not isinstance(node, ast.Call) or name not in needs:
                continue
            given: set[str] = set()
            opaque = False
            for keyword in node.keywords:
                if keyword.arg is not None:
                    given.add(keyword.arg)
                elif isinstance(keyword.value, ast.Dict):
                    given |= {
                        str(k.value) for k in keyword.value.keys if isinstance(k, ast.Constant)
                    }
                else:
                    opaque = True  # **data: the tests of that method look at it
            missing = [] if opaque else sorted(set(needs[name]) - given)
            if missing:
                found.append(f"{source.at(node)}: {name} without {', '.join(missing)}")
    return found


def fault_points(tree: Iterable[Source], known: Iterable[str]) -> list[str]:
    """Every call names a known point as a literal; every known point has a call, or is pending."""
    found = []
    placed = set()
    names = set(known)
    for source in tree:
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call) or _dotted(node.func).split(".")[-1] != "faultpoint":
                continue
            argument = node.args[0] if node.args else None
            if not isinstance(argument, ast.Constant) or argument.value not in names:
                found.append(f"{source.at(node)}: no fault point of core/faults.py")
            else:
                placed.add(argument.value)
    found += [
        f"core/faults.py: {name} is placed nowhere" for name in names - placed - POINTS_PENDING
    ]
    found += [f"{name} is placed: take it off POINTS_PENDING" for name in placed & POINTS_PENDING]
    found += [f"{name} is pending and unknown" for name in POINTS_PENDING - names]
    return found


def unused_sql(tree: Iterable[Source], known: Iterable[str]) -> list[str]:
    """Every program, query and statement is named by code, or is pending."""
    names = set(known)
    words = {
        node.value
        for source in tree
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    pending = SQL_PENDING.keys()
    found = [f"queries.sql: nobody uses {name}" for name in sorted(names - words - pending)]
    found += [f"{name} is used: take it off SQL_PENDING" for name in sorted(words & pending)]
    found += [f"{name} is pending and unknown" for name in sorted(pending - names)]
    return found


# -- exports --------------------------------------------------------------------------------------


def exports(tree: Iterable[Source]) -> list[str]:
    """Each module with public names has ``__all__``, all of it exists, and others take no more."""
    everything = list(tree)
    found = []
    public: dict[str, list[str]] = {}
    modules = {source.module for source in everything}
    for source in everything:
        bound = _bound(source.tree.body)
        listed = _listed(source.tree)
        if listed is None:
            if any(not name.startswith("_") for name in _defined(source.tree)):
                found.append(f"{source.path}: has public names and no __all__")
            continue
        public[source.module] = listed
        found += [
            f"{source.path}: __all__ names {name}, which is not there"
            for name in listed
            if name not in bound and f"{source.module}.{name}" not in modules
        ]
        found += [f"{source.path}: {name} twice in __all__" for name in _twice(listed)]
    for source in everything:
        for node, module, name in imports(source):
            if module not in public or not name or f"{module}.{name}" in modules:
                continue
            if name not in public[module] and module != source.module:
                found.append(f"{source.at(node)}: {module} does not export {name}")
    return found


def _listed(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            value = getattr(node, "value", None)
            if isinstance(value, ast.List | ast.Tuple):
                return [str(item.value) for item in value.elts if isinstance(item, ast.Constant)]
    return None


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _defined(tree: ast.Module) -> list[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [node.name for node in tree.body if isinstance(node, kinds)]


def _bound(body: Iterable[ast.stmt]) -> set[str]:
    """Names bound at the top of a module, also inside if, try and with."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        for child in ast.walk(node):
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                names.add(child.id)
            elif isinstance(child, ast.Import | ast.ImportFrom):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in child.names}
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(child.name)
    return names


# -- files that land ------------------------------------------------------------------------------


def leftovers(files: Iterable[Path], root: Path) -> list[str]:
    """No note to do something later."""
    return _lines(files, root, lambda line: bool(LEFTOVERS.search(line)), "a note left over")


def machine_traces(files: Iterable[Path], root: Path) -> list[str]:
    """No host of a package registry, no path of the machine it was written on."""
    places = {"/".join(("", name, "")) for name in ("work", "root")} | {
        f"{root.parent}/",
        f"{Path.home()}/",
    }
    if sys.prefix != sys.base_prefix:
        places.add(f"{sys.prefix}/")
    places = {place for place in places if place not in ("//", "/", "/tmp/", "/home/", "/usr/")}
    pattern = re.compile("|".join(rf"(?<![\w.*}}]){re.escape(place)}" for place in sorted(places)))
    return _lines(
        files,
        root,
        lambda line: bool(REGISTRIES.search(line) or pattern.search(line)),
        "a registry's host or a path of this machine",
    )


def _lines(files: Iterable[Path], root: Path, bad: _Judge, what: str) -> list[str]:
    found = []
    for file in files:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if bad(line):
                found.append(
                    f"{file.relative_to(root).as_posix()}:{number}: {what}: {line.strip()}"
                )
    return found


def dead_links(page: Path) -> list[str]:
    """Links of a page to files or headings that there are not; what lies in code is no link."""
    text = _without_code(page.read_text("utf-8"))
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (heading and heading not in _headings(file)):
            dead.append(target)
    return dead


def _without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`\n]*`", lambda found: "`" if "](" in found[0] else found[0], text)


def _headings(page: Path) -> set[str]:
    """The anchors of a page, as a forge makes them."""
    found = set()
    for head in re.findall(r"^#+ +(.*)$", _without_code(page.read_text("utf-8")), re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).strip().replace(" ", "-"))
    return found


def shown_commands(text: str) -> list[str]:
    """Every command line of goclaw in the shell blocks of a page, without what surrounds it."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", "").splitlines():
            code = line if line.startswith("goclaw") else line.partition("  #")[0]
            for part in re.split(r" \|\|? | && |; | > ", code):
                match = re.search(r"(?:^|/| )(goclaw .*)$", part)
                if match and not part.lstrip().startswith("#"):
                    found.append(match[1])
    return found


def undocumented(names: Iterable[str], text: str) -> list[str]:
    """Names that appear nowhere in the documentation as words."""
    words = set(re.findall(r"[\w./-]+", text))
    return [f"the documentation does not mention {name}" for name in names if name not in words]
