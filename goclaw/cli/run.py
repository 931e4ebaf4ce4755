"""`goclaw run PROMPT`: one prompt from here to its result (U-2).

Owns what a person and a pipe see of it, Ctrl-C, and its exit code. Not in here: the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

from goclaw.cli import show
from goclaw.cli.place import Place, brain_name, home_of, prepare
from goclaw.client import asks
from goclaw.client.blocking import SyncClient
from goclaw.core import limits
from goclaw.core.clock import SystemClock
from goclaw.core.errors import PolicyDenied, UsageError
from goclaw.core.files import absolute

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from goclaw.client.blocking import Prompted
    from goclaw.client.records import Approval, Event, PromptResult, ToolUse

__all__ = ["run"]

FAILED: Final = 1
DENIED: Final = PolicyDenied.exit
CANCELED: Final = 11
WAITING: Final = 12

_NOT_MADE: Final = ("denied", "rejected")

_BY_ITSELF = frozenset({"sleep", "subtask", "rate_limited"})
"""What a suspended run goes on from without anybody."""


class _Waiting(Exception):
    """The run waits for somebody who is not here."""


def run(options: argparse.Namespace) -> int:
    """Run the prompt; the exit code says how it ended."""
    home = home_of(options)
    if options.session and options.brain:
        raise UsageError("A session keeps its brain.", hint="Leave out --brain or --session.")
    if options.key is not None and not 1 <= len(options.key) <= limits.KEY_CHARS_MAX:
        raise UsageError(
            f"--key takes 1 to {limits.KEY_CHARS_MAX} characters.", hint="Give another one."
        )
    here = absolute()
    if options.detach:
        prepare(home)
        with SyncClient(home, start=True) as client:
            return _detach(client, options, here)
    place = Place(home, takes_over=True)
    with place as client:
        return _Run(client, place, options, here).carry_out()


def _session(
    client: SyncClient, options: argparse.Namespace, here: str, *, interactive: bool
) -> str:
    if options.session:
        return client.ask(asks.resume(options.session, here)).session_id
    brain = brain_name(options.brain)
    return client.new_session(
        here, key=options.key, brain=brain, interactive=interactive
    ).session_id


def _detach(client: SyncClient, options: argparse.Namespace, here: str) -> int:
    session = _session(client, options, here, interactive=False)
    prompted = client.submit(options.prompt, session=session, key=options.key)
    ids = {"sessionId": session, "runId": client.accepted(prompted)}
    if options.json:
        show.json_line(ids)
    else:
        show.pairs(ids)
    return 0


class _Run:
    """One run in the foreground."""

    def __init__(
        self, client: SyncClient, place: Place, options: argparse.Namespace, here: str
    ) -> None:
        self._client, self._place, self._options, self._here = client, place, options, here
        self._interactive = sys.stdin.isatty() and sys.stderr.isatty() and not options.json
        self._live = show.is_terminal() and not options.json
        self._progress = sys.stderr.isatty() and not options.json
        self._message = ""  # the message that is being written
        self._column = 0
        self._said: set[str] = set()
        self._prompted: Prompted | None = None
        self._trouble = ""  # why the disk takes no writes
        self._interrupts = 0

    def carry_out(self) -> int:
        client, options = self._client, self._options
        if self._interactive:
            client.on_question = self._question
        client.on_told = self._told
        session = _session(client, options, self._here, interactive=self._interactive)
        key = options.key or SystemClock().new_id("key")
        with self._interruptible(session):
            self._place.on_terminate = lambda: show.tell(f"Leaving. {self._way_on(session)}")
            prompted = self._prompted = client.submit(options.prompt, session=session, key=key)
            try:
                result = client.wait(prompted, self._event)
            except _Waiting:
                self._place.hurry()
                return self._waiting(prompted)
        return self._ended(result)

    def _way_on(self, session: str) -> str:
        """What becomes of the run when nobody waits for it here."""
        if self._place.is_embedded:
            return (
                "The run goes back to the queue; it goes on with `goclaw serve`, or with the next "
                f"`goclaw run --session {session}`."
            )
        return f"The run goes on in the daemon: `goclaw events {session} --follow`."

    # -- while it runs --------------------------------------------------------------------------

    def _told(self, method: str, params: dict[str, Any]) -> None:
        if method == "_goclaw/storage":
            self._trouble = "" if params.get("ok") else str(params.get("message"))
            self._mention_trouble()

    def _mention_trouble(self) -> None:
        """Once, and only of a run that was accepted: a refused prompt has its own sentence."""
        accepted = self._prompted is not None and self._prompted.turn.run_id
        line = f"Waiting: the disk takes no writes ({self._trouble})."
        if self._trouble and accepted and line not in self._said:
            self._said.add(line)
            show.tell(f"{line} The run goes on when it does; Ctrl-C leaves it.")

    def _event(self, event: Event) -> None:
        self._mention_trouble()
        if self._options.json:
            show.json_line(event.to_json())
        elif event.type == "update":
            self._show_update(event)
        elif event.type == "message.interrupted" and self._column:
            self._newline()
        assert self._prompted is not None
        held_up_by = self._prompted.turn.held_up_by
        if held_up_by and held_up_by not in _BY_ITSELF:
            asked = held_up_by == "approval" and self._interactive
            if not asked:
                raise _Waiting

    def _show_update(self, event: Event) -> None:
        update = event.body
        if event.update == "agent_message_chunk" and self._live:
            if update.get("messageId") != self._message and self._column:
                self._newline()
            self._message = str(update.get("messageId"))
            self._write(str((update.get("content") or {}).get("text", "")))
        elif event.update in ("tool_call", "tool_call_update") and self._progress:
            title = update.get("title") or update.get("toolCallId")
            line = f"{title}: {update.get('status', 'pending')}"
            if line not in self._said:
                self._said.add(line)
                if self._column and self._live:
                    self._newline()
                print(f"- {show.one_line(line)}", file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        shown = "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)
        sys.stdout.write(shown)
        sys.stdout.flush()
        if shown:
            self._column = 0 if shown.endswith("\n") else 1

    def _newline(self) -> None:
        self._write("\n")

    def _question(self, approval: Approval) -> str | None:
        if self._column:
            self._newline()
        print(f"May it? {show.one_line(approval.title)}", file=sys.stderr)
        if approval.reason:
            print(f"  because {show.one_line(approval.reason)}", file=sys.stderr)
        for number, (_option_id, name, _kind) in enumerate(approval.options, 1):
            print(f"  {number}  {show.one_line(name)}", file=sys.stderr)
        while True:
            print("Number: ", end="", file=sys.stderr, flush=True)
            try:
                text = sys.stdin.readline()
            except KeyboardInterrupt:
                text = ""
            if not text:
                return None
            if text.strip().isdecimal() and 1 <= int(text) <= len(approval.options):
                return approval.options[int(text) - 1][0]

    @contextlib.contextmanager
    def _interruptible(self, session: str) -> Iterator[None]:
        """The first Ctrl-C cancels the run, the second one leaves; so does the first while the disk
        takes no writes."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def interrupted(_number: int, _frame: Any) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                self._place.hurry(at_once=True)
                raise KeyboardInterrupt

        def cancel() -> None:
            os.read(reader, 1)
            if self._interrupts and self._trouble:
                # A cancel could not be written either.
                show.tell(f"Leaving. {self._way_on(session)}")
                self._place.hurry(at_once=True)
                raise KeyboardInterrupt
            if self._interrupts:
                show.tell("canceling; once more to leave at once")
                self._client.cancel_turn(session)

        before = signal.signal(signal.SIGINT, interrupted)
        # The kernel may give the signal to any thread: only this wakes the one that waits.
        fd_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._client.wake = (reader, cancel)
        try:
            yield
        finally:
            self._client.wake = None
            signal.set_wakeup_fd(fd_before)
            signal.signal(signal.SIGINT, before)
            os.close(reader)
            os.close(writer)

    # -- when it is over ------------------------------------------------------------------------

    def _waiting(self, prompted: Prompted) -> int:
        held_up_by = prompted.turn.held_up_by
        session = prompted.turn.session_id
        text = f"The run waits: {held_up_by}. See `goclaw events {session}`."
        if held_up_by == "approval":
            waiting = self._client.approvals(session)
            commands = [f"`goclaw approvals answer {one.approval_id} allow`" for one in waiting]
            text = f"The run waits for your yes. Answer it: {' and '.join(commands)}."
        error = {"code": "waiting", "message": text}
        result = dataclasses.replace(prompted.turn.result(), error=error)
        if self._options.json:
            show.json_line(result.to_json())
        else:
            show.tell(text)
        return WAITING

    def _ended(self, result: PromptResult) -> int:
        code, error = _verdict(self._options.prompt, result)
        if self._options.json:
            show.json_line(dataclasses.replace(result, error=error).to_json())
            return code
        if self._live:
            if self._column:
                self._newline()
        elif result.text and (code == 0 or result.error is not None):
            self._write(result.text if result.text.endswith("\n") else result.text + "\n")
        if error is not None and not (self._live and str(error["message"]) in result.text):
            show.tell(str(error["message"]))
        elif code == CANCELED:
            show.tell("The run was canceled.")
        return code


def _verdict(prompt: str, result: PromptResult) -> tuple[int, dict[str, Any] | None]:
    """The exit code, and the error that it stands for.

    A command is its one tool: where that failed the command failed, although the turn ended well.
    """
    last = result.tools[-1] if result.tools else None
    if result.state == "CANCELED":
        return CANCELED, result.error
    if result.error is not None:
        denied = result.error.get("code") in (PolicyDenied.code, "approval_rejected")
        return (DENIED if denied else FAILED), result.error
    if result.stop_reason == "refusal":
        return FAILED, {"code": "refusal", "message": "The brain refused."}
    if last is not None and last.status in _NOT_MADE:
        return DENIED, _tool_error(last, "policy_denied")
    is_command = prompt.lstrip().startswith("/") and len(result.tools) == 1
    if last is not None and is_command and last.status != "completed":
        return FAILED, _tool_error(last, "tool_failed")
    return 0, None


def _tool_error(tool: ToolUse, code: str) -> dict[str, Any]:
    found = tool.output if isinstance(tool.output, dict) else {}
    why = str(found.get("error", tool.output))
    if tool.status in _NOT_MADE and tool.status not in why:
        why = f"{tool.name} was {tool.status}: {why}."
    return {"code": found.get("code", code), "message": why}
