"""Every place that opens, connects or starts something is known, and what it needs (A-2).

Owns the list of sites. A new one turns the test red until somebody says whose it is: goclaw's own
(files of the home, listeners, its own children), or an agent's, behind a decision.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import checks
import pytest

from goclaw.core.decisions import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.req("A-2", "I-6")

CALLS = frozenset(
    {
        "open", "io.open", "os.open", "os.posix_spawn", "os.posix_spawnp", "os.execv", "os.execve",
        "os.execvp", "os.execvpe", "os.fork", "os.forkpty", "os.system", "os.popen", "os.spawnv",
        "os.spawnve", "os.startfile", "os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.mkdir",
        "os.makedirs", "os.mkfifo", "os.mknod", "os.remove", "os.unlink", "os.rmdir",
        "os.removedirs", "os.rename", "os.renames", "os.replace", "os.link", "os.symlink",
        "os.truncate", "os.chmod", "os.chown", "os.utime", "os.kill", "os.killpg", "os.getenv",
        "os.putenv", "socket.socket", "socket.create_connection", "socket.create_server",
        "socket.socketpair", "socket.getaddrinfo", "socket.gethostbyname",
        "asyncio.open_connection", "asyncio.open_unix_connection", "asyncio.start_server",
        "asyncio.start_unix_server", "asyncio.create_subprocess_exec",
        "asyncio.create_subprocess_shell", "subprocess.Popen", "subprocess.run", "subprocess.call",
        "subprocess.check_call", "subprocess.check_output", "subprocess.getoutput",
        "multiprocessing.Process", "urllib.request.urlopen", "http.client.HTTPConnection",
        "http.client.HTTPSConnection", "shutil.rmtree", "shutil.copy", "shutil.copy2",
        "shutil.copyfile", "shutil.copytree", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp",
        "tempfile.TemporaryFile", "tempfile.NamedTemporaryFile", "tempfile.TemporaryDirectory",
        "ctypes.CDLL", "goclaw.core.files.read_regular", "goclaw.core.files.open_to_append",
    }
)  # fmt: skip
METHODS = frozenset(
    {
        "sock_connect", "create_connection", "create_unix_connection", "create_server",
        "create_unix_server", "getaddrinfo", "subprocess_exec", "subprocess_shell", "define_func",
        "define_wasi", "get_password", "set_password", "urlopen", "read_text", "read_bytes",
        "write_text", "write_bytes", "iterdir", "rglob", "symlink_to", "hardlink_to",
    }
)  # fmt: skip
CHILDREN = frozenset({"children.open", "children.start", "Children.open", "Children.start"})
"""Where a program begins: whoever calls them holds the right to it, or starts goclaw's own."""

LAST = METHODS | {name.rpartition(".")[2] for name in CALLS | CHILDREN}

OWN_ROOMS = {
    "cli": "people's own surface: what they name on their command line",
    "client": "the socket of the daemon, and the daemon itself",
    "conformance": "a kit for other implementations, on a developer's machine",
    "core": "the home's own files and recorded children; children are judged below",
    "ops": "the home's own files",
    "store": "the database, effects.log and the key of the secrets",
    "testing": "stubs for foreign suites",
}
"""Rooms in which nothing that an agent names is opened, dialled or started."""

OWN = {
    "brains/cassette.py:CassetteBrain._add": "the cassette that the user named for this brain",
    "brains/cassette.py:CassetteBrain._find": "the same",
    "brains/script.py:load_script": "the script that the user named as this session's brain",
    "core/processes.py:Children.start": "the one place that starts children: callers have decided",
    "core/processes.py:Children.open": "the same, with pipes",
    "core/processes.py:Children._admit": "the book of children in the home",
    "core/processes.py:Children.end": "ends what it started itself",
    "core/processes.py:Children.end_left": "the book of children in the home, and who is in it",
    "core/processes.py:_Group.is_alive": "a recorded group",
    "core/processes.py:_Group.kill": "the same",
    "core/processes.py:_Group.members": "/proc of a recorded group",
    "core/processes.py:_bears": "/proc of a child",
    "core/processes.py:_stat": "/proc of a child",
    "engine/audit.py:_append": "logs/audit.jsonl",
    "engine/audit.py:_last_line": "logs/audit.jsonl",
    "engine/audit.py:_shorten": "logs/audit.jsonl",
    "engine/audit.py:_lines": "logs/audit.jsonl",
    "gateway/descent.py:_descriptors": "/proc of a peer",
    "gateway/descent.py:_parents": "/proc of a peer",
    "gateway/descent.py:adopt_orphans": "prctl of the daemon itself",
    "gateway/descent.py:_parent": "/proc of a peer",
    "gateway/descent.py:_inode": "/proc of a peer",
    "gateway/server.py:Gateway.serve_unix": "the daemon's own listener",
    "skills/catalog.py:_read": "manifests and modules of the home's own skills",
    "skills/catalog.py:_skill_folders": "the folders of the home's own skills",
    "skills/compile.py:ModuleCache._trim": "the home's own cache",
    "skills/compile.py:_run_child": "goclaw's own compiler, on a module whose hash was checked",
    "skills/compile.py:ModuleCache._load": "the home's own cache",
    "skills/compile.py:ModuleCache._compile": "the home's own cache",
    "skills/rebuild.py:clang_version": "a developer's tool",
    "skills/rebuild.py:main": "a developer's tool",
    "skills/rebuild.py:build": "a developer's tool",
}

# site: the action that lets it happen, and the function on the way that holds the right to it
DECIDED = {
    "brains/agents.py:Agent.start": ("exec.run", "brains/agents.py:Agent.start", "Capability"),
    "net/dial.py:_connected": ("net.connect", "net/http.py:Client.fetch", "Permit"),
    "net/http.py:_Checked.connect_tcp": ("net.connect", "net/http.py:Client.fetch", "Permit"),
    "net/resolver.py:resolve_by_system": ("net.connect", "net/egress.py:resolved", "Permit"),
    "tools/files.py:_openat2": ("fs.read", "tools/files.py:open_place", "Capability"),
    "tools/confine.py:_libc": ("exec.run", "tools/exec.py:ExecTool.start", "Capability"),
    "tools/files.py:open_place": ("fs.read", "tools/files.py:open_place", "Capability"),
    "tools/files.py:_open_beneath_root": ("fs.read", "tools/files.py:open_place", "Capability"),
    "tools/files.py:write_place": ("fs.write", "tools/files.py:write_place", "Capability"),
    "tools/files.py:_walk": ("fs.read", "tools/files.py:open_place", "Capability"),
    "tools/confine.py:main": ("exec.run", "tools/exec.py:ExecTool.start", "Capability"),
    "tools/confine.py:_restrict_files": ("exec.run", "tools/exec.py:ExecTool.start", "Capability"),
    "tools/exec.py:ExecTool.start": ("exec.run", "tools/exec.py:ExecTool.start", "Capability"),
    "tools/exec.py:ExecTool._ran": ("exec.run", "tools/exec.py:ExecTool.start", "Capability"),
    "skills/wasi.py:link": ("wasm.host", "skills/tools.py:SkillTools.run_given", "Capability"),
}

RIGHTS = {
    "Capability", "_Permit", "goclaw.core.capability.Capability",
    "goclaw.core.capability.capabilities",
}  # fmt: skip
MAKERS = {
    "core/capability.py:capabilities": "of decisions that let it happen",
    "engine/effects.py:_Entry._delegated": "of a call that the journal has seen to",
    "tools/gate.py:Gate._dispatch": "the same",
    "tools/gate.py:Gate.granted": "of what an agent was allowed by the gate",
    "tools/gate.py:Gate.call": "what a call may reach, held back until its dispatch",
    "tools/gate.py:Gate.own_permit": "of an allowed decision about a model's server",
}
"""Who makes a right: nobody else can, so whoever holds one has been decided about."""

NOT_BUILT = {
    "skill.activate", "mcp.start", "mcp.call",
}  # fmt: skip
"""Actions whose place does not exist yet. It arrives with a decision, and leaves this list."""


def sites(tree: list[checks.Source]) -> set[str]:
    """``module:function`` of every call that opens, connects or starts."""
    return _places(
        [one for one in tree if one.room not in OWN_ROOMS or one.path in NOT_OWN], _reaches
    )


NOT_OWN = {"goclaw/core/processes.py"}


def _places(
    tree: list[checks.Source], wanted: Callable[[ast.expr, dict[str, str]], bool]
) -> set[str]:
    """``module:function`` of every call, or name handed on, that is wanted."""
    found = set()
    for source in tree:
        names = _imported(source.tree)

        def walk(node: ast.AST, scope: tuple[str, ...]) -> None:
            for child in ast.iter_child_nodes(node):
                inner = scope
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = (*scope, child.name)
                reached = [child.func, *child.args] if isinstance(child, ast.Call) else []
                if any(wanted(one, names) for one in reached):  # noqa: B023 - called at once
                    found.add(f"{source.path.removeprefix('goclaw/')}:{'.'.join(inner)}")  # noqa: B023
                walk(child, inner)

        walk(source.tree, ())
    return found


def _imported(tree: ast.AST) -> dict[str, str]:
    """What a name of the module stands for, by its imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update({one.asname: one.name for one in node.names if one.asname})
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(
                {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
            )
    return names


def _reaches(called: ast.expr, names: dict[str, str]) -> bool:
    if isinstance(called, ast.Name):
        return names.get(called.id, called.id) in CALLS
    if not isinstance(called, ast.Attribute) or called.attr not in LAST:
        return False
    head, dot, rest = ast.unparse(called).partition(".")
    name = f"{names.get(head, head)}{dot}{rest}"
    if name in CALLS or called.attr in METHODS:
        return True
    return ".".join(name.split(".")[-2:]).lstrip("_") in CHILDREN


def _makes(called: ast.expr, names: dict[str, str]) -> bool:
    return isinstance(called, ast.Name) and names.get(called.id, called.id) in RIGHTS


TREE = checks.sources(checks.ROOT, "goclaw")
KNOWN = {**OWN, **DECIDED}
FOUND = sites(TREE)


def test_every_site_is_known() -> None:
    unknown = sorted(FOUND - set(KNOWN))
    assert not unknown, (
        "these open, connect or start something: put each under a decision and into DECIDED, or "
        f"into OWN with the reason why no agent names it: {unknown}"
    )


def test_every_known_site_is_there() -> None:
    gone = sorted(KNOWN.keys() - FOUND)
    assert not gone, f"take these off the list: {gone}"


@pytest.mark.parametrize("site", DECIDED)
def test_a_decided_site_lies_behind_its_decision(site: str) -> None:
    action, keeper, capability = DECIDED[site]
    assert action in ACTIONS
    module, _, place = keeper.partition(":")
    (source,) = [one for one in TREE if one.path == f"goclaw/{module}"]
    *classes, function = place.split(".")
    scope: ast.AST = source.tree
    for name in (*classes, function):
        scope = next(
            node for node in ast.walk(scope)
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name == name
        )  # fmt: skip
    assert isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef)
    kinds = [ast.unparse(one.annotation) for one in (*scope.args.args, *scope.args.kwonlyargs)
             if one.annotation is not None]  # fmt: skip
    assert any(capability in kind for kind in kinds), (keeper, kinds)


def test_a_right_is_made_where_it_was_decided() -> None:
    made = _places(TREE, _makes)
    assert made == MAKERS.keys(), "only who has the decision makes the right"


def test_an_action_is_asked_about_where_it_is_built() -> None:
    """In the floors that carry out; the policy's own words do not count."""
    rooms = {"gateway", "tools", "brains", "engine", "skills", "daemon", "net"}
    words = {
        node.value
        for source in TREE
        if source.room in rooms
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    plain = {action for action in ACTIONS if not action.startswith("admin.")}
    asked = plain & words
    assert plain - asked == NOT_BUILT, "what is asked about now leaves NOT_BUILT"


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    open('/etc/passwd')",
        "import socket\nsocket.create_connection(('a', 1))",
        "import subprocess\nclass C:\n    def f(self):\n        subprocess.run(['ls'])",
        "async def f(loop, s):\n    await loop.sock_connect(s, ('a', 1))",
        "def f(linker):\n    linker.define_func('env', 'x', None, None)",
        "import keyring\nkeyring.get_password('a', 'b')",
        "import os as o\ndef f():\n    o.remove('/etc/passwd')",
        "from os import unlink\ndef f():\n    unlink('/etc/passwd')",
        "from pathlib import Path\ndef f():\n    Path('/etc/passwd').read_text()",
        "async def f(run):\n    await run(open, '/etc/passwd')",
        "async def f(self):\n    await self._children.open(['ls'])",
        "import os\ndef f():\n    return os.getenv('TOKEN')",
        "from goclaw.core.files import read_regular\ndef f(p):\n    read_regular(p, 9)",
    ],
)
def test_a_planted_site_is_found(text: str) -> None:
    planted = checks.Source("goclaw/tools/x.py", text, ast.parse(text))
    assert sites([planted]) - set(KNOWN)
