"""The default policy: what is written to a new home as policy.toml (A-3, U-5).

Owns the text. It is a literal and no file beside this one, because nothing on this floor opens
files. Not in here: when and where it is written.
"""

from __future__ import annotations

from typing import Final

__all__ = ["TEXT"]

TEXT: Final = """\
# goclaw's policy: what may happen, and who is asked first.
#
# Nothing is allowed unless a rule here says so. Of all rules that apply to a request, a deny wins
# over an ask, an ask over an allow; among equals the first in this file is the one that is named.
# The order of the rules therefore never changes what is decided.
#
#   goclaw policy check                             is this file valid? (faults with their lines)
#   goclaw policy explain SUBJECT ACTION RESOURCE   what would be decided, by which rule, and why
#
# The file is checked as a whole. A faulty one is refused, and the policy in force stays. Work that
# is already running keeps the policy it began with. The language is described in docs/policy.md;
# in short, a rule has
#
#   id           its name in every decision and audit record
#   effect       "allow", "ask" (a person answers first) or "deny"
#   actions      what is done; "admin.*" stands for every admin action
#   subjects     who does it: { kind, origin, id }; left out: everybody
#                kind    client (your editor, terminal, scripts), run (the agent), skill, worker,
#                        daemon
#                origin  unix, stdio (your own programs), ws (the network port, with its token),
#                        internal
#   resources    to what: { path } itself and all below it, { host } a name and all below it,
#                { cidr }, { exact }, { prefix }, { glob }; left out: everything. {root} is any root
#                of the session: its working directory and its additional ones. {home} is goclaw's
#                own directory.
#   conditions   interactive, tainted, origin, effect_class, risk_max, bytes_max
#   obligations  "notify", "confine"
#   reason       what people read when it decides

version = 1

# -- your own programs ------------------------------------------------------------------------

[[rule]]
id = "clients-talk"
effect = "allow"
actions = ["protocol.call", "run.submit"]
subjects = [{ kind = "client", origin = ["unix", "stdio", "ws"] }]
reason = "your own clients may talk to the daemon and give it work"

# Approvals and administration belong to people. Agents, skills and workers are of another kind,
# whatever they connect through, and no rule names them here.
[[rule]]
id = "clients-answer-and-administer"
effect = "allow"
actions = ["approval.answer", "admin.*", "skill.activate"]
subjects = [{ kind = "client", origin = ["unix", "stdio", "ws"] }]
reason = "your own clients may answer approvals and administer the daemon"

# An editor may bring MCP servers, which are programs to start. Over the network port that would be
# remote execution, so there it is not allowed.
[[rule]]
id = "local-clients-start-mcp-servers"
effect = "allow"
actions = ["mcp.start"]
subjects = [{ kind = "client", origin = ["unix", "stdio"] }]
reason = "a local client may start the MCP servers of its session"

# -- the agent: thinking and harmless tools ---------------------------------------------------

# Brains that reach no network. A model's name belongs here once you have configured one.
[[rule]]
id = "offline-brains"
effect = "allow"
actions = ["brain.call"]
subjects = [{ kind = "run" }]
resources = [{ exact = "direct" }, { exact = "script" }]
reason = "these brains run on this machine and reach no network"

# Sandboxed skills without any capability, and waiting.
[[rule]]
id = "builtin-skills"
effect = "allow"
actions = ["tool.call"]
subjects = [{ kind = "run" }]
resources = [
    { exact = "builtin/word-count" },
    { exact = "builtin/sha256" },
    { exact = "builtin/json-query" },
    { exact = "builtin/sleep" },
    { exact = "builtin/delegate" },
]
reason = "they can neither write nor reach the network; another run is decided about itself"

# Naming these tools is free; what they do to files is decided below, as fs.read and fs.write.
[[rule]]
id = "builtin-file-tools"
effect = "allow"
actions = ["tool.call"]
subjects = [{ kind = "run" }]
resources = [
    { exact = "builtin/read" },
    { exact = "builtin/list" },
    { exact = "builtin/search" },
    { exact = "builtin/write" },
    { exact = "builtin/edit" },
]
reason = "file tools are decided about again for each path"

# So is naming these; where http goes is decided below, as net.connect, what runs as exec.run.
[[rule]]
id = "builtin-http-and-exec"
effect = "allow"
actions = ["tool.call"]
subjects = [{ kind = "run" }]
resources = [{ exact = "builtin/http" }, { exact = "builtin/exec" }]
reason = "each URL, address and program is decided about again"

# Built-in skills are there from the start.
[[rule]]
id = "daemon-activates-builtin-skills"
effect = "allow"
actions = ["skill.activate"]
subjects = [{ kind = "daemon" }]
resources = [{ prefix = "builtin/" }]
reason = "these skills came with goclaw"

# -- files ------------------------------------------------------------------------------------

# goclaw's own directory holds this policy, the token and the log of what happened. An agent that
# could write there could allow itself anything.
[[rule]]
id = "never-goclaws-own-files"
effect = "deny"
actions = ["fs.read", "fs.write"]
resources = [{ path = "{home}" }]
reason = "goclaw's own directory is closed to agents, tools and skills"

[[rule]]
id = "read-under-roots"
effect = "allow"
actions = ["fs.read"]
subjects = [{ kind = "run" }, { kind = "client" }]
resources = [{ path = "{root}" }]
reason = "reading and searching under the session's roots"

[[rule]]
id = "write-under-roots-interactive"
effect = "allow"
actions = ["fs.write"]
subjects = [{ kind = "run" }]
resources = [{ path = "{root}" }]
conditions = { interactive = true }
reason = "writing under the session's roots while you watch"

[[rule]]
id = "write-under-roots-unattended"
effect = "ask"
actions = ["fs.write"]
subjects = [{ kind = "run" }]
resources = [{ path = "{root}" }]
conditions = { interactive = false }
reason = "nobody watches this session, so writing needs a yes"

# -- programs, network, secrets, other people's tools -----------------------------------------

[[rule]]
id = "ask-before-programs"
effect = "ask"
actions = ["exec.run"]
subjects = [{ kind = "run" }]
obligations = ["confine"]
reason = "a program runs in the session's directory; where it cannot be confined, it is denied"

# Only names: a literal address has no rule and is denied. To reach one, name it with cidr.
[[rule]]
id = "ask-before-network"
effect = "ask"
actions = ["net.connect"]
subjects = [{ kind = "run" }]
resources = [{ host = "." }]
reason = "what leaves this machine does not come back"

# This one stays an ask even if you allow a host elsewhere in this file: text from outside, private
# data and a way out, all in one run, is how data is stolen. If you allow literal addresses, name
# them here, too.
[[rule]]
id = "ask-when-data-could-leak"
effect = "ask"
actions = ["net.connect"]
subjects = [{ kind = "run" }]
resources = [{ host = "." }]
conditions = { tainted = ["untrusted", "private"] }
reason = "this run has met both untrusted text and private data"

# Addresses that hand out a machine's credentials, or reach everybody on the wire.
[[rule]]
id = "never-link-local-or-multicast"
effect = "deny"
actions = ["net.connect"]
resources = [
    { cidr = "0.0.0.0/8" },
    { cidr = "169.254.0.0/16" },
    { cidr = "224.0.0.0/4" },
    { cidr = "240.0.0.0/4" },
    { cidr = "::/128" },
    { cidr = "fe80::/10" },
    { cidr = "ff00::/8" },
]
reason = "metadata services, link-local and multicast addresses"

[[rule]]
id = "ask-before-secrets"
effect = "ask"
actions = ["secret.use"]
subjects = [{ kind = "run" }]
conditions = { interactive = true }
reason = "a secret is about to be used; in an unattended session that is denied"

[[rule]]
id = "ask-before-mcp-tools"
effect = "ask"
actions = ["mcp.call"]
subjects = [{ kind = "run" }]
reason = "a tool of an MCP server: what it does is not known here"

# What an agent of brain acp:COMMAND asks a person for: acp/BRAIN/KIND, by ACP's kinds of tools.
[[rule]]
id = "ask-before-agents-tools"
effect = "ask"
actions = ["tool.call"]
subjects = [{ kind = "run" }]
resources = [{ prefix = "acp/" }]
reason = "another agent wants to use a tool of its own"

[[rule]]
id = "ask-when-tools-could-leak"
effect = "ask"
actions = ["mcp.call", "exec.run"]
subjects = [{ kind = "run" }]
conditions = { tainted = ["untrusted", "private"] }
reason = "this run has met both untrusted text and private data"

# wasm.host: no rule, so a module gets nothing from its host.

# -- workers ----------------------------------------------------------------------------------

# External workers: your own programs, which connect as your clients do.
[[rule]]
id = "workers-claim"
effect = "allow"
actions = ["worker.claim"]
subjects = [{ kind = "worker", origin = ["unix", "ws"] }]
reason = "your own workers may claim tasks"

# The token of a single attempt, as a worker hands it to a program that it starts.
[[rule]]
id = "workers-report"
effect = "allow"
actions = ["protocol.call"]
subjects = [{ kind = "worker", origin = ["unix", "ws"] }]
resources = [{ exact = "initialize" }, { prefix = "_goclaw/worker/" }]
reason = "a worker may speak for its attempt"
"""
