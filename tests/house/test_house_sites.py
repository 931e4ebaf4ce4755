"""Every place that opens, connects or starts something is known, and what it needs (A-2).

Owns the list of sites. A new one turns the test red until somebody says whose it is: goclaw's own
(files of the home, listeners, its own children), or an agent's, behind a decision.
"""

from __future__ import annotations

import ast

import checks
import pytest

from goclaw.core.decisions import ACTIONS

pytestmark = pytest.mark.req("A-2", "I-6")

CALLS = frozenset(
    {
        "open", "io.open", "os.open", "os.posix_spawn", "os.execv", "os.execve", "os.execvp",
        "os.fork", "os.system", "os.popen", "socket.socket", "socket.create_connection",
        "asyncio.open_connection", "asyncio.open_unix_connection",
        "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell", "subprocess.Popen",
        "subprocess.run", "subprocess.call", "subprocess.check_output", "urllib.request.urlopen",
    }
)  # fmt: skip
METHODS = frozenset(
    {
        "sock_connect", "create_connection", "create_unix_connection", "subprocess_exec",
        "define_func", "define_wasi", "get_password", "set_password", "urlopen",
    }
)  # fmt: skip

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
    "core/processes.py:Children.start": "the one place that starts children: callers have decided",
    "core/processes.py:Children.open": "the same, with pipes",
    "core/processes.py:Children._admit": "the book of children in the home",
    "core/processes.py:_bears": "/proc of a child",
    "core/processes.py:_stat": "/proc of a child",
    "engine/audit.py:_last_line": "logs/audit.jsonl",
    "engine/audit.py:_lines": "logs/audit.jsonl",
    "gateway/descent.py:_parent": "/proc of a peer",
    "gateway/descent.py:_inode": "/proc of a peer",
    "gateway/server.py:Gateway.serve_unix": "the daemon's own listener",
    "skills/catalog.py:_read": "manifests and modules of the home's own skills",
    "skills/compile.py:ModuleCache._load": "the home's own cache",
    "skills/compile.py:ModuleCache._compile": "the home's own cache",
    "skills/rebuild.py:clang_version": "a developer's tool",
    "skills/rebuild.py:build": "a developer's tool",
}

# site: the action that lets it happen, and the function on the way that holds the decision
DECIDED = {
    "net/dial.py:_connected": ("net.connect", "net/http.py:Client.fetch", "Permit"),
    "net/http.py:_Checked.connect_tcp": ("net.connect", "net/http.py:Client.fetch", "Permit"),
    "tools/files.py:open_place": ("fs.read", "tools/gate.py:Gate._built", "Decision"),
    "tools/files.py:_open_beneath_root": ("fs.read", "tools/gate.py:Gate._built", "Decision"),
    "tools/files.py:write_place": ("fs.write", "tools/gate.py:Gate._built", "Decision"),
    "tools/confine.py:main": ("exec.run", "tools/gate.py:Gate._built", "Decision"),
    "tools/confine.py:_restrict_files": ("exec.run", "tools/gate.py:Gate._built", "Decision"),
    "tools/files.py:_walk": ("fs.read", "tools/gate.py:Gate._built", "Decision"),
}

PENDING = {
    "skills/wasi.py:link": "modules get a clock, random bytes and stdin, and no capability",
}
"""Sites without a decision of their own, and why that holds until there is one."""

NOT_BUILT = {
    "skill.activate", "wasm.host", "mcp.start", "mcp.call",
}  # fmt: skip
"""Actions whose place does not exist yet. It arrives with a decision, and leaves this list."""


def sites(tree: list[checks.Source]) -> set[str]:
    """``module:function`` of every call that opens, connects or starts."""
    found = set()
    for source in tree:
        if source.room in OWN_ROOMS and source.path != "goclaw/core/processes.py":
            continue

        def walk(node: ast.AST, names: tuple[str, ...], source: checks.Source = source) -> None:
            for child in ast.iter_child_nodes(node):
                inner = names
                if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    inner = (*names, child.name)
                if isinstance(child, ast.Call) and _reaches(child.func):
                    found.add(f"{source.path.removeprefix('goclaw/')}:{'.'.join(inner)}")
                walk(child, inner)

        walk(source.tree, ())
    return found


def _reaches(called: ast.expr) -> bool:
    name = ast.unparse(called)
    return name in CALLS or (isinstance(called, ast.Attribute) and called.attr in METHODS)


TREE = checks.sources(checks.ROOT, "goclaw")
KNOWN = {**OWN, **DECIDED, **PENDING}


def test_every_site_is_known() -> None:
    unknown = sorted(sites(TREE) - set(KNOWN))
    assert not unknown, (
        "these open, connect or start something: put each under a decision and into DECIDED, or "
        f"into OWN with the reason why no agent names it: {unknown}"
    )


def test_every_known_site_is_there() -> None:
    gone = sorted(KNOWN.keys() - sites(TREE))
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
    ],
)
def test_a_planted_site_is_found(text: str) -> None:
    planted = checks.Source("goclaw/tools/x.py", text, ast.parse(text))
    assert sites([planted]) - set(KNOWN)
