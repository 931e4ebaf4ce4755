"""The grammar of the command line, and what `--help` teaches.

Owns verbs, options and their sentences. Not in here: what a verb does.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final, NoReturn

import goclaw
from goclaw.core.errors import UsageError
from goclaw.core.files import is_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["build", "parse"]

_ABOUT: Final = """\
goclaw runs agents on your machine so that nothing is lost and nothing happens twice: prompts are on
disk before they are acknowledged, every tool call is decided on and journaled, and every event can
be read again.

  goclaw run "/word-count README.md"     one prompt, here and now; no daemon needed
  goclaw serve                           the daemon: editors, scripts and the network port
  goclaw tui                             look at it, talk to it, answer it, in this terminal
  goclaw acp                             what you enter as the agent's command in an editor
"""
_MORE: Final = """\
what did it do last night?   goclaw task list; goclaw events SESSION
what may it do, and why?     goclaw policy explain run/direct fs.read ./README.md
who is waiting for me?       goclaw approvals list
why does it not go on?       goclaw why TASK; goclaw dlq list
is something wrong here?     goclaw doctor; goclaw logs --level warning

Everything lies in GOCLAW_HOME (default ~/.goclaw). Exit codes: 0 done, 1 failed, 2 usage,
3 config or policy refused, 4 home in use, 5 database refused, 6 listener failed, 10 denied,
11 canceled, 12 waits for an approval, 70 internal, 75 the editor stopped reading.
"""


class _Parser(argparse.ArgumentParser):
    """Errors are ours: one sentence and what to do, exit 2."""

    def error(self, message: str) -> NoReturn:
        text = message[:1].upper() + message[1:]
        raise UsageError(f"{text}.", hint=f"See `{self.prog} --help`.")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line; ``module`` and ``function`` say what carries it out.

    Raises UsageError; ``--help`` and ``--version`` print and raise SystemExit(0).
    """
    for argument in arguments:
        if not is_text(argument):
            raise UsageError(
                f"The argument {_shown(argument)} is not UTF-8 text.",
                hint="Write it in UTF-8; a file with such a name has to be renamed.",
            )
    # An editor waits for this one: the other verbs would be a fifth of its start.
    parser = _built(_acp) if arguments[:1] == ["acp"] else build()
    return parser.parse_args(list(arguments) or ["--help"])


def build() -> argparse.ArgumentParser:
    """The parser; docs/cli.md is written from it."""
    return _built(_work, _look, _rules, _proofs, _keep)


def _built(*groups: Callable[[Any], None]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="goclaw", description=_ABOUT, epilog=_MORE, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"goclaw {goclaw.__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for group in groups:
        group(verbs)
    return parser


def _work(verbs: Any) -> None:
    serve = _verb(verbs, "serve", "serve", "run the daemon in the foreground until it is stopped")
    serve.add_argument("--listen", metavar="HOST:PORT", help="where /ws listens; port 0: any free")
    serve.add_argument(
        "--beyond-loopback", action="store_const", const="yes",
        help="listen where other machines can connect, with TLS",
    )  # fmt: skip
    serve.add_argument("--lanes", metavar="N", help="attempts that run at once")
    _brain(serve, "the brain of prompts that name none")
    serve.add_argument(
        "--idle-exit", action="store_true",
        help="end after daemon.idle_exit_s without client and work, as `goclaw acp` starts it",
    )  # fmt: skip
    run = _verb(verbs, "run", "run", "run one prompt and print its result")
    run.add_argument("prompt", metavar="PROMPT", help='text, or a command as in "/word-count FILE"')
    run.add_argument("--session", metavar="ID", help="go on in this session instead of a new one")
    run.add_argument("--key", metavar="KEY", help="the same key again returns the same run")
    run.add_argument("--detach", action="store_true", help="print the ids and leave it running")
    _brain(run, "the brain of a new session: direct, script:FILE, ...")
    _json(run, "one object per line: each event, then the result")
    worker = _verb(verbs, "worker", "worker:work", "carry out the tasks of a pool with a function")
    worker.add_argument("handler", metavar="MODULE:FUNCTION", help="gets the context of each task")
    worker.add_argument("--pool", required=True, metavar="NAME", help="whose tasks are claimed")
    worker.add_argument(
        "--concurrency", type=_count, default=1, metavar="N", help="tasks at once; 1 unless given"
    )
    tui = _verb(verbs, "tui", "tui", "look and talk in the terminal: sessions, queue, questions")
    tui.add_argument("--session", metavar="ID", help="begin in this conversation")
    _acp(verbs)


def _acp(verbs: Any) -> None:
    acp = _verb(verbs, "acp", "acp", "speak the Agent Client Protocol on stdin and stdout")
    _brain(acp, "the brain of new sessions")


def _look(verbs: Any) -> None:
    status = _verb(verbs, "status", "status", "what the daemon is doing")
    _json(status, "as one object")
    task = _group(verbs, "task", "tasks: list, show, cancel, signal")
    listing = _verb(task, "list", "task:list_tasks", "all tasks, newest first")
    listing.add_argument("--session", metavar="ID", help="of this session only")
    listing.add_argument(
        "--state", action="append", default=[], metavar="STATE", help="in this state; repeatable"
    )
    _json(listing)
    show = _verb(task, "show", "task:show_task", "one task with everything known about it")
    show.add_argument("task", metavar="TASK", help="its id")
    _json(show, "as one object")
    cancel = _verb(task, "cancel", "task:cancel", "cancel a task")
    cancel.add_argument("id", metavar="TASK", help="its id")
    _json(cancel, "the receipt as one object")
    signal = _verb(task, "signal", "task:signal", "send a run the signal that it waits for")
    signal.add_argument("run", metavar="RUN", help="its id")
    signal.add_argument("name", metavar="NAME", help="of the signal; its first one counts")
    signal.add_argument("--payload", metavar="JSON", default="null", help="what the run is given")
    _json(signal, "event and duplicate as one object")
    short = _verb(verbs, "cancel", "task:cancel", "cancel a task or a run")
    short.add_argument("id", metavar="ID", help="of a task or a run")
    _json(short, "the receipt as one object")
    why = _verb(verbs, "why", "why", "why a task waits, is blocked, denied or dead; what moves it")
    why.add_argument("task", metavar="TASK", help="its id")
    _json(why, "state and reasons as one object")
    init = _verb(
        verbs, "init", "init", "make the home: settings, policy, token; what is there stays"
    )
    _json(init, "what was made as one object")
    line = _verb(verbs, "timeline", "timeline", "every step of a run, and how long it took")
    line.add_argument("run", metavar="RUN", help="its id")
    _json(line, "all of it as one object")
    doctor = _verb(verbs, "doctor", "doctor", "is everything as it should be? how to mend it")
    _json(doctor, "all findings as one object")
    _effects(verbs)
    _dead_letters(verbs)
    events = _verb(verbs, "events", "events", "what happened in a session")
    events.add_argument("session", metavar="SESSION", help="its id; _system: the daemon's own")
    events.add_argument(
        "--from", dest="from_event", type=_cursor, default=0, metavar="N", help="after event N"
    )
    events.add_argument("--follow", action="store_true", help="and then as it happens")
    _json(events)
    approvals = _group(verbs, "approvals", "questions that wait for you: list, answer")
    waiting = _verb(approvals, "list", "approvals:list_approvals", "open questions, oldest first")
    waiting.add_argument("--session", metavar="ID", help="of this session only")
    _json(waiting)
    answer = _verb(approvals, "answer", "approvals:answer", "answer one; the first answer counts")
    answer.add_argument("approval", metavar="APPROVAL", help="its id")
    answer.add_argument("option", metavar="OPTION", help="one of its options, as allow or reject")
    grant = _verb(approvals, "grant", "approvals:grant", "say yes beforehand to calls of a tool")
    grant.add_argument("tool", metavar="TOOL", help="its name")
    grant.add_argument(
        "--resource", action="append", default=[], metavar="GLOB",
        help="only about this, as the question would name it; repeatable",
    )  # fmt: skip
    grant.add_argument(
        "--digest", action="append", default=[], metavar="HEX",
        help="only this exact call, by its request hash in `effects list`; repeatable",
    )  # fmt: skip
    grant.add_argument("--session", metavar="ID", help="only in this session")
    grant.add_argument(
        "--uses", type=_count, default=1, metavar="N", help="at most N calls; 1 unless given"
    )
    grant.add_argument(
        "--for", dest="span", type=_span, default=86_400_000, metavar="SPAN",
        help="how long: 1d unless given; d, h, m or s",
    )  # fmt: skip
    _json(grant, "its id as one object")
    given = _verb(approvals, "grants", "approvals:grants", "what is allowed beforehand")
    _json(given)
    revoke = _verb(approvals, "revoke", "approvals:revoke", "take a grant back")
    revoke.add_argument("grant", metavar="GRANT", help="its id")
    away = _verb(approvals, "away", "approvals:away", "nobody is there: questions wait on")
    away.add_argument("state", metavar="on|off", choices=("on", "off"), help="off: you are back")


def _effects(verbs: Any) -> None:
    effects = _group(verbs, "effects", "what a task did: list; what nobody knows: probe, settle")
    listing = _verb(effects, "list", "effects:list_effects", "the effects of a task, in order")
    listing.add_argument("task", metavar="TASK", help="its id")
    _json(listing)
    probe = _effect(effects, "probe", "ask the tool whether it happened")
    settle = _effect(effects, "settle", "say what became of it; the task goes on after the last")
    redo = _effect(effects, "redo", "send it again, whatever became of it, under the same key")
    settle.add_argument(
        "outcome", metavar="done|not_done|fail", choices=("done", "not_done", "fail"),
        help="it happened; it did not and is sent; the task fails over it",
    )  # fmt: skip
    settle.add_argument(
        "--result", metavar="JSON", help="what the agent is told of one that is done"
    )
    for verb in (probe, settle, redo):
        _json(verb, "the effect as one object")


def _dead_letters(verbs: Any) -> None:
    dlq = _group(verbs, "dlq", "tasks that were given up: list, show, redrive, drop")
    listing = _verb(dlq, "list", "dlq:list_letters", "dead letters, newest first")
    listing.add_argument("--fingerprint", metavar="F", help="with this fingerprint only")
    _json(listing)
    show = _verb(dlq, "show", "dlq:show_letter", "one with its whole history")
    show.add_argument("task", metavar="TASK", help="its id")
    _json(show, "the task as one object, its events in `events`")
    for name, about in (
        ("redrive", "put them back into the queue, with whole budgets; a failed task, too"),
        ("drop", "list them no more; their history stays"),
    ):
        verb = _verb(dlq, name, f"dlq:{name}", about)
        which = verb.add_mutually_exclusive_group(required=True)
        which.add_argument("task", nargs="?", metavar="TASK", help="this one")
        which.add_argument("--fingerprint", metavar="F", help="all with this fingerprint")
        verb.add_argument("--dry-run", action="store_true", help="only say what would be done")
        _json(verb, "what was done as one object")


def _effect(verbs: Any, name: str, about: str) -> Any:
    parser = _verb(verbs, name, f"effects:{name}", about)
    parser.add_argument("task", metavar="TASK", help="its id")
    parser.add_argument(
        "effect", metavar="ORDINAL", type=_ordinal, help="its number in `effects list`"
    )
    return parser


def _rules(verbs: Any) -> None:
    audit = _group(verbs, "audit", "who was allowed what: verify, show")
    verify = _verb(audit, "verify", "audit:verify", "was a record removed, changed or moved?")
    _json(verify, "what was found as one object")
    records = _verb(audit, "show", "audit:records", "the last decisions, oldest first")
    records.add_argument(
        "--last", type=_count, default=50, metavar="N", help="how many: 50 unless given"
    )
    _json(records)
    stop = _verb(verbs, "stop", "halt:stop", "emergency stop, until `goclaw resume`")
    level = stop.add_mutually_exclusive_group(required=True)
    level.add_argument(
        "--effects", action="store_true", help="send nothing that is not pure; agents may think"
    )
    level.add_argument(
        "--all", action="store_true", help="begin nothing, and interrupt what is under way"
    )
    stop.add_argument("--why", metavar="TEXT", help="shown in `goclaw status`")
    _json(stop, "what stands still as one object")
    resume = _verb(verbs, "resume", "halt:resume", "end the emergency stop")
    _json(resume, "what goes on as one object")
    policy = _group(verbs, "policy", "what may happen: check, explain, show, reload, history, test")
    check = _verb(policy, "check", "policy:check", "is policy.toml valid? faults with their lines")
    check.add_argument("file", nargs="?", metavar="FILE", help="another file than the home's")
    explain = _verb(policy, "explain", "policy:explain", "what would be decided, and why")
    explain.add_argument("subject", metavar="SUBJECT", help="KIND[/ID][@ORIGIN]: run/direct")
    explain.add_argument("action", metavar="ACTION", help="as fs.read; docs/policy.md lists them")
    explain.add_argument("resource", metavar="RESOURCE", help="a path, an address, a name")
    _json(explain, "the decision as one object")
    rules = _verb(policy, "show", "policy:show_rules", "the rules and the version of the policy")
    _json(rules, "one object per rule")
    again = _verb(policy, "reload", "policy:reload", "let the daemon read policy.toml again")
    _json(again, "the version as one object")
    history = _verb(policy, "history", "policy:history", "which version was in force since when")
    _json(history)
    tried = _verb(policy, "test", "policy:test", "what another policy would have decided otherwise")
    tried.add_argument("file", metavar="FILE", help="the other policy")
    tried.add_argument(
        "--since", type=_span, default=14 * 86_400_000, metavar="SPAN",
        help="how far back: 14d unless given; d, h, m or s",
    )  # fmt: skip
    _json(tried, "one object per difference")
    secret = _group(verbs, "secret", "values that tools send, unseen: set, list, rm, rotate")
    kept = _verb(secret, "set", "secret:set_value", "keep a value; it is asked for, or on stdin")
    kept.add_argument("name", metavar="NAME", help="write secret:NAME where the value is to be")
    kept.add_argument(
        "--host", action="append", default=[], metavar="HOST",
        help="where it may go; .example.org is every name below; repeatable",
    )  # fmt: skip
    kept.add_argument(
        "--tool", action="append", default=[], metavar="TOOL",
        help="who may send it; http when only hosts are named; repeatable",
    )  # fmt: skip
    _json(kept, "all but the value as one object")
    _json(_verb(secret, "list", "secret:list_secrets", "names, bindings, references; no values"))
    gone = _verb(secret, "rm", "secret:remove", "forget a value; from now on nobody gets it")
    gone.add_argument("name", metavar="NAME", help="its name")
    again = _verb(secret, "rotate", "secret:rotate", "another value under the same bindings")
    again.add_argument("name", metavar="NAME", help="its name")
    _json(again, "all but the value as one object")
    token = _group(verbs, "token", "the token of programs that connect over TCP: rotate")
    _verb(token, "rotate", "token:rotate", "another one; whoever came with the old one is cut off")
    skill = _group(verbs, "skill", "tools in a sandbox: list")
    skills = _verb(skill, "list", "skill:list_skills", "the skills of this home")
    _json(skills)


def _proofs(verbs: Any) -> None:
    drill = _group(verbs, "drill", "the promises, tried on this machine: crash")
    crash = _verb(drill, "crash", "drill:crash", "kill -9 a daemon at every commit of a run")
    what = crash.add_mutually_exclusive_group()
    what.add_argument("--script", metavar="FILE", help="this run: the script's entry for `drill`")
    what.add_argument(
        "--skill", nargs=2, metavar=("NAME", "FILE"), help="calls of this skill on this file"
    )
    crash.add_argument(
        "--kills", type=_count, metavar="N", help="at most N lives, spread over the run"
    )
    crash.add_argument(
        "--twice", action="store_true",
        help="kill the daemon that takes the run up again, too, at every commit of its own",
    )  # fmt: skip
    _json(crash, "the report as one object")
    fork = _verb(verbs, "fork", "fork", "branch a run off at an event; it acts only after a yes")
    fork.add_argument("run", metavar="RUN", help="its id")
    fork.add_argument(
        "--at", type=_cursor, required=True, metavar="EVENT",
        help="the last event of the run that counts; `goclaw events SESSION` shows them",
    )  # fmt: skip
    _json(fork, "the new ids as one object")
    replay = _verb(verbs, "replay", "replay", "make a run once more from its record, and compare")
    replay.add_argument("run", metavar="RUN", help="its id")
    _json(replay, "what was found as one object")


def _keep(verbs: Any) -> None:
    backup = _group(verbs, "backup", "copies of this home: create, verify, list")
    create = _verb(backup, "create", "backup:create", "make one, also while the daemon works")
    _json(create, "the backup as one object")
    verify = _verb(backup, "verify", "backup:verify", "read all of one: is it whole?")
    verify.add_argument("name", metavar="NAME", help="as `backup list` shows it")
    _json(verify, "the backup as one object")
    listing = _verb(backup, "list", "backup:list_backups", "the backups of this home, newest first")
    _json(listing)
    restore = _verb(verbs, "restore", "backup:restore", "put a backup in the place of the database")
    restore.add_argument("name", metavar="NAME", help="as `backup list` shows it")
    restore.add_argument(
        "--settings", action="store_true", help="bring back config, policy and skills, too"
    )
    _json(restore, "what was done as one object")
    verify = _verb(verbs, "verify", "verify", "is the log whole, and every state what it says?")
    verify.add_argument("session", metavar="SESSION", nargs="?", help="this one only")
    _json(verify, "what was found as one object")
    upgrade = _verb(verbs, "upgrade", "upgrade", "what will this goclaw make of the home?")
    upgrade.add_argument(
        "--rehearse", action="store_true", required=True,
        help="migrate a copy, and make parked runs once more from their records",
    )  # fmt: skip
    _json(upgrade, "what was found as one object")
    logs = _verb(
        verbs, "logs", "logs", "what the daemon noted about its own work, secrets taken out"
    )
    logs.add_argument("--follow", action="store_true", help="go on with what is noted from now on")
    logs.add_argument(
        "--lines", type=_whole_lines, default=100, metavar="N", help="the last N; 100 unless given"
    )
    logs.add_argument(
        "--level", choices=("debug", "info", "warning", "error"), metavar="LEVEL",
        help="debug, info, warning or error, and what is worse",
    )  # fmt: skip
    logs.add_argument("--session", metavar="ID", help="of this session only")
    logs.add_argument("--task", metavar="ID", help="of this task only")
    _json(logs)
    completion = _verb(verbs, "completion", "completion", "let a shell complete goclaw's words")
    completion.add_argument(
        "shell", choices=("bash", "zsh", "fish"), metavar="bash|zsh|fish",
        help="whose script is printed; its first line says where it goes",
    )  # fmt: skip


def _group(verbs: Any, name: str, about: str) -> Any:
    parser = verbs.add_parser(name, help=about, description=_sentence(about), allow_abbrev=False)
    return parser.add_subparsers(title="verbs", metavar="VERB", required=True)


def _verb(verbs: Any, name: str, place: str, about: str) -> Any:
    parser = verbs.add_parser(name, help=about, description=_sentence(about), allow_abbrev=False)
    module, _, function = place.partition(":")
    parser.set_defaults(module=module, function=function or module)
    parser.add_argument("--home", metavar="DIR", help="instead of GOCLAW_HOME or ~/.goclaw")
    return parser


def _brain(parser: Any, about: str) -> None:
    parser.add_argument("--brain", metavar="NAME", help=about)


def _json(parser: Any, about: str = "one object per line") -> None:
    parser.add_argument("--json", action="store_true", help=about)


def _shown(argument: str) -> str:
    text = ascii(argument)
    return text if len(text) <= 80 else text[:77] + "..."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _cursor(text: str) -> int:
    return _whole(text, "event id")


def _whole_lines(text: str) -> int:
    return _whole(text, "number of lines")


def _ordinal(text: str) -> int:
    return _whole(text, "number of an effect")


def _span(text: str) -> int:
    unit = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000}.get(text[-1:])
    if unit is None or not (text[:-1].isascii() and text[:-1].isdigit() and 0 < len(text) < 8):
        raise argparse.ArgumentTypeError(f"{text!r} is no span: 14d, 12h, 30m or 90s")
    return max(1, int(text[:-1]) * unit)


def _whole(text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text!r} is no {what}: a whole number from 0")
    return int(text)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is no count: a whole number from 1")
    return int(text)
