"""External workers in Python: claim tasks of a pool, hand them to a function, keep their leases.

Owns the claims, the heartbeats and the way from what a handler does to the words of PROTOCOL 2.8.
Not in here: the connection (``aio.py``), what a word means (the daemon).

The connection and the heartbeats live on the loop of ``serve``; handlers never do. A plain function
gets a thread of its own, a coroutine function another thread's loop: a handler that is busy for an
hour keeps its lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import inspect
import json
import os
import signal
import threading
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeVar

from goclaw.client.aio import Client, pause
from goclaw.core import limits, log
from goclaw.core.clock import SystemClock
from goclaw.core.errors import (
    EffectUnknown,
    GoclawError,
    LeaseLost,
    Nondeterminism,
    QueueFull,
    RateLimited,
    RequestCancelled,
    StorageFailed,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from goclaw.core.home import Home

    Handler = Callable[[Any], Any]

__all__ = ["AsyncContext", "Context", "EffectFailed", "Failure", "Retry", "Worker"]

T = TypeVar("T")

_log = log.logger("client.worker")

_OVER: Final = (LeaseLost, EffectUnknown, Nondeterminism)
"""After these the attempt is not ours any more."""
_PASSING: Final = (StorageFailed, QueueFull, RateLimited)
"""These say: not now."""


class Retry(Exception):
    """Raised by a handler: the attempt failed, another one may not. Raised by the call of an
    effect: nothing was sent, so another attempt may send it."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "retry",
        after_ms: int | None = None,
        fingerprint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.after_ms, self.fingerprint = code, after_ms, fingerprint


class Failure(Exception):
    """Raised by a handler: the task failed for good."""

    def __init__(self, message: str, *, code: str = "failed") -> None:
        super().__init__(message)
        self.code = code


class EffectFailed(Exception):
    """Raised by the call of an effect: the far side definitely refused. It is journaled, and raised
    again wherever a later attempt gets to that effect. ``error`` is any JSON value."""

    def __init__(self, error: Any) -> None:
        super().__init__(str(error))
        self.error = error


class _Attempt:
    """A claimed task. Belongs to the worker's loop, but for ``cancelled`` and ``ordinal``."""

    def __init__(self, client: Client, words: asyncio.Semaphore, task: dict[str, Any]) -> None:
        self.task = task
        self.lease = {"taskId": task["taskId"], "leaseToken": task["leaseToken"]}
        self.loop = asyncio.get_running_loop()
        self.cancelled = threading.Event()
        self.on_lost: Callable[[], Any] = lambda: None
        self._client, self._words = client, words
        self._over: asyncio.Future[GoclawError] = self.loop.create_future()
        self._known = {effect["ordinal"]: effect for effect in task["effects"]}
        self._ordinal = -1
        self._counting = threading.Lock()

    def ordinal(self) -> int:
        """The next one; any thread."""
        with self._counting:
            self._ordinal += 1
            return self._ordinal

    @property
    def is_over(self) -> bool:
        """True when the lease is gone, however it went."""
        return self._over.done()

    def lose(self, error: GoclawError) -> None:
        """The lease is gone: whatever waits raises ``error``, whatever runs is told."""
        if not self._over.done():
            self._over.set_result(error)
            self.cancelled.set()
            self.on_lost()

    async def say(self, word: str, **params: Any) -> Any:
        """A word of this attempt; it waits for a daemon that is away. LeaseLost and its kin."""
        if self._over.done():
            raise self._over.result()
        async with self._words:
            call = asyncio.ensure_future(
                self._client.call(f"_goclaw/worker/{word}", {**self.lease, **params})
            )
            try:
                await asyncio.wait({call, self._over}, return_when=asyncio.FIRST_COMPLETED)
                if not call.done():
                    raise self._over.result()
            finally:
                call.cancel()  # nothing, once it is done
        try:
            return call.result()
        except _OVER as error:
            self.lose(error)
            raise

    # -- effects -------------------------------------------------------------------------------

    async def intend(self, effect: dict[str, Any]) -> dict[str, Any]:
        """Shall it be done? What the claim told of finished ones need not be asked for."""
        known = self._known.get(effect["ordinal"])
        if known is not None and known["requestHash"] == effect["requestHash"]:
            return {"go": False, **known}
        answer: dict[str, Any] = await self.say("effect", phase="intent", **effect)
        return answer

    async def result(self, effect: dict[str, Any], **outcome: Any) -> None:
        """What came of it: result or error."""
        await self.say("effect", phase="result", **effect, **outcome)


def _effect(
    attempt: _Attempt, name: str, args: Any, kind: str, effect_class: str | None, key: str | None
) -> dict[str, Any]:
    request = b"\0".join((kind.encode(), name.encode(), _canonical(args)))
    effect = {
        "ordinal": attempt.ordinal(), "kind": kind, "name": name, "class": effect_class,
        "requestHash": hashlib.sha256(request).hexdigest(), "idempotencyKey": key,
    }  # fmt: skip
    return {member: value for member, value in effect.items() if value is not None}


def _canonical(value: Any) -> bytes:
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.encode()


def _recorded(answer: dict[str, Any]) -> Any:
    """What an earlier attempt's effect came to."""
    if answer.get("error") is not None:
        raise EffectFailed(answer["error"])
    return answer.get("result")


def _unsent(error: Retry) -> dict[str, Any]:
    return {"code": error.code, "message": str(error), "retryable": True}


class _Facts:
    """What a handler is told of its task."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt
        task = attempt.task
        self.payload: Any = task["payload"]
        self.task_id: str = task["taskId"]
        self.run_id: str = task["runId"]
        self.session_id: str = task["sessionId"]
        self.attempt: int = task["attempt"]
        """1 for the first; it grows with every claim."""
        self.max_attempts: int = task["maxAttempts"]
        self.key: str = task["idempotencyKey"]
        """The same in every attempt; keys of effects are made from it."""
        self.traceparent: str = task["traceparent"]
        self.attempt_token: str = task["attemptToken"]
        """For a program that speaks for this attempt, and for nothing else."""

    @property
    def cancelled(self) -> bool:
        """True when the lease is gone: stop, nothing that is said counts any more."""
        return self._attempt.cancelled.is_set()


class Context(_Facts):
    """What a plain function gets. Every method raises LeaseLost once the attempt is over."""

    def effect(
        self,
        name: str,
        args: Any,
        call: Callable[[str], T],
        *,
        kind: str = "tool",
        effect_class: str | None = None,
        key: str | None = None,
    ) -> T:
        """Do something to the world, once: intent, ``call`` with its idempotency key, result.

        What an earlier attempt did is answered from the journal, and nothing is called. Call it for
        the same effects in the same order in every attempt; ``args`` (JSON) say whether it is the
        same. ``effect_class``: pure, keyed, probeable or irreversible; else the submission's.
        ``key``: your own, instead of the one that goclaw derives. ``call`` returns JSON; it raises
        EffectFailed for a definite no, Retry when nothing was sent; anything else leaves the effect
        unknown.
        """
        attempt = self._attempt
        effect = _effect(attempt, name, args, kind, effect_class, key)
        answer = self._wait(attempt.intend(effect))
        if not answer["go"]:
            known: T = _recorded(answer)
            return known
        try:
            value = call(answer["idempotencyKey"])
        except EffectFailed as failed:
            self._wait(attempt.result(effect, error=failed.error))
            raise
        except Retry as error:
            self._wait(attempt.result(effect, error=_unsent(error)))
            raise
        _canonical(value)
        self._wait(attempt.result(effect, result=value))
        return value

    def emit(self, update: dict[str, Any]) -> int:
        """Show an ACP session update to whoever watches; its event id. A daemon that dies at that
        moment may show it twice."""
        event_id: int = self._wait(self._attempt.say("emit", update=update))["eventId"]
        return event_id

    def wait_cancelled(self, timeout_ms: int) -> bool:
        """Wait until the lease is gone, at most that long; what ``cancelled`` says then."""
        return self._attempt.cancelled.wait(timeout_ms / 1000)

    def _wait(self, word: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(word, self._attempt.loop).result()
        except RuntimeError:
            if not self._attempt.loop.is_closed():
                raise
            word.close()
            raise _given_up() from None


class AsyncContext(_Facts):
    """What a coroutine function gets: as Context, to be awaited. Cancelled with its lease."""

    async def effect(
        self,
        name: str,
        args: Any,
        call: Callable[[str], Awaitable[T]],
        *,
        kind: str = "tool",
        effect_class: str | None = None,
        key: str | None = None,
    ) -> T:
        """See ``Context.effect``; ordinals follow the order in which effects are begun."""
        attempt = self._attempt
        effect = _effect(attempt, name, args, kind, effect_class, key)
        answer = await self._wait(attempt.intend(effect))
        if not answer["go"]:
            known: T = _recorded(answer)
            return known
        try:
            value = await call(answer["idempotencyKey"])
        except EffectFailed as failed:
            await self._wait(attempt.result(effect, error=failed.error))
            raise
        except Retry as error:
            await self._wait(attempt.result(effect, error=_unsent(error)))
            raise
        _canonical(value)
        await self._wait(attempt.result(effect, result=value))
        return value

    async def emit(self, update: dict[str, Any]) -> int:
        """See ``Context.emit``."""
        event_id: int = (await self._wait(self._attempt.say("emit", update=update)))["eventId"]
        return event_id

    async def _wait(self, word: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(word, self._attempt.loop))


class Worker:
    """Claims tasks of one pool and carries each out with ``handler(context)``.

    What the handler returns (JSON) completes the task; Retry and Failure fail it, and so does any
    other exception, retryably. ``home`` or ``url`` and ``token``: as for ``Client``. It waits for a
    daemon that is away, and goes on with its leases when one is back.
    """

    def __init__(
        self,
        pool: str,
        handler: Handler,
        *,
        home: str | Path | Home | None = None,
        url: str | None = None,
        token: str | None = None,
        concurrency: int = 1,
        worker_id: str | None = None,
    ) -> None:
        if not 1 <= concurrency <= limits.CLAIM_MAX:
            raise UsageError(
                f"A worker has 1 to {limits.CLAIM_MAX} tasks at once, not {concurrency}.",
                hint="Start several workers for more.",
            )
        self.worker_id = worker_id or SystemClock().new_id("worker")
        self._pool, self._handler, self._concurrency = pool, handler, concurrency
        self._is_async = inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(
            getattr(handler, "__call__", None)  # noqa: B004
        )
        self._client = Client(home, url=url, token=token, patient=True, client_id=self.worker_id)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handlers: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._live: dict[asyncio.Task[None], _Attempt] = {}
        self._changed = asyncio.Event()
        self._words = asyncio.Semaphore(limits.REQUESTS_MAX // 2)
        self._lease_ms = limits.LEASE_MS
        self.on_ready: Callable[[], None] = lambda: None
        """Called once when there is a connection."""

    # -- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until SIGTERM or SIGINT, from the main thread. See ``serve``."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        await self.serve()

    def stop(self) -> None:
        """Claim no more; end when what runs has ended, or was handed back. A second call hurries.
        Any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is over already
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    async def serve(self) -> None:
        """Work until ``stop``. Raises what forbids it, as PolicyDenied; nothing is lost then."""
        self._loop = asyncio.get_running_loop()
        connecting = asyncio.ensure_future(self._client.connect())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        try:
            if connecting.done():
                connecting.result()
                self.on_ready()
                await self._work()
        finally:
            for task in (connecting, stopping):
                task.cancel()
            await asyncio.gather(connecting, stopping, return_exceptions=True)
            await self._client.close()
            if self._handlers is not None:
                self._handlers.call_soon_threadsafe(self._handlers.stop)

    async def _work(self) -> None:
        beating = asyncio.ensure_future(self._heartbeats())
        try:
            await self._claims()
            await self._drained()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await self._hand_back()

    # -- claims --------------------------------------------------------------------------------

    async def _claims(self) -> None:
        while not self._stopping.is_set():
            free = self._concurrency - len(self._live)
            if free <= 0:
                self._changed.clear()
                await self._unless_stopping(asyncio.ensure_future(self._changed.wait()), 0)
                continue
            claim = asyncio.ensure_future(self._claim(free))
            # Withdrawn, it still may bring something.
            for task in await self._unless_stopping(claim, limits.CLOSE_MS_MAX) or ():
                self._begin(task)

    async def _claim(self, free: int) -> list[dict[str, Any]]:
        params = {
            "pool": self._pool, "max": free, "waitMs": limits.CLAIM_WAIT_MS_MAX,
            "workerId": self.worker_id,
        }  # fmt: skip
        try:
            answer = await self._client.call("_goclaw/worker/claim", params, until=self._stopping)
        except _PASSING:
            await pause(limits.BACKOFF_MS_MIN)
            return []
        except RequestCancelled:
            return []
        tasks: list[dict[str, Any]] = answer["tasks"]
        return tasks

    async def _unless_stopping(self, work: asyncio.Future[T], grace_ms: int) -> T | None:
        """What comes of ``work``; None when it is time to stop and the grace is over."""
        stopping: asyncio.Future[Any] = asyncio.ensure_future(self._stopping.wait())
        waits: set[asyncio.Future[Any]] = {work, stopping}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            # An absent daemon answers nothing.
            if not work.done() and grace_ms and not self._client.is_away:
                await asyncio.wait({work}, timeout=grace_ms / 1000)
            return work.result() if work.done() else None
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def _begin(self, task: dict[str, Any]) -> None:
        self._lease_ms = task["leaseMs"]
        attempt = _Attempt(self._client, self._words, task)
        running = asyncio.ensure_future(self._attempted(attempt))
        self._live[running] = attempt
        running.add_done_callback(self._ended)
        self._changed.set()

    def _ended(self, running: asyncio.Task[None]) -> None:
        del self._live[running]
        self._changed.set()

    # -- leases --------------------------------------------------------------------------------

    async def _heartbeats(self) -> None:
        while True:
            if not self._live:
                self._changed.clear()
                await self._changed.wait()
                continue
            await pause(self._lease_ms // 3)
            attempts = {attempt.lease["leaseToken"]: attempt for attempt in self._live.values()}
            leases = [attempt.lease for attempt in attempts.values() if not attempt.is_over]
            if not leases:
                continue
            try:
                answer = await self._client.call("_goclaw/worker/heartbeat", {"leases": leases})
            except GoclawError:
                continue  # the next one, soon; the lease outlives two
            for lease, told in zip(leases, answer["leases"], strict=True):
                if not told["ok"]:
                    attempts[lease["leaseToken"]].lose(_given_up())

    # -- attempts ------------------------------------------------------------------------------

    async def _attempted(self, attempt: _Attempt) -> None:
        """Run the handler and say what it came to."""
        task_id = attempt.lease["taskId"]
        try:
            word, params = await self._outcome(attempt)
            try:
                await self._last_word(attempt, word, params)
            except _OVER:
                raise
            except GoclawError as error:  # a result that is too large: that is its end, then
                _log.warning("%s: %s", task_id, error)
                await self._last_word(attempt, "fail", _failed(error.code, error, retryable=False))
        except _OVER as error:
            _log.warning("%s: %s", task_id, error)
        except GoclawError:
            _log.exception("%s: left to its lease", task_id)

    async def _last_word(self, attempt: _Attempt, word: str, params: dict[str, Any]) -> None:
        while True:
            try:
                await attempt.say(word, **params)
                return
            except _PASSING:
                await pause(limits.BACKOFF_MS_MIN)

    async def _outcome(self, attempt: _Attempt) -> tuple[str, dict[str, Any]]:
        try:
            value = await self._handled(attempt)
            _canonical(value)
        except Retry as error:
            more = {"retryAfterMs": error.after_ms, "fingerprint": error.fingerprint}
            given = {name: value for name, value in more.items() if value is not None}
            return "fail", {**_failed(error.code, error, retryable=True), **given}
        except Failure as error:
            return "fail", _failed(error.code, error, retryable=False)
        except EffectFailed as error:
            return "fail", _failed("effect_failed", error, retryable=False)
        except _OVER:
            raise
        except GoclawError as error:
            return "fail", _failed(error.code, error, retryable=isinstance(error, _PASSING))
        except asyncio.CancelledError as error:
            if attempt.is_over:
                raise _given_up() from None
            return _fault(attempt, error)
        except Exception as error:  # the edge of a handler's code: a fault there fails its attempt
            return _fault(attempt, error)
        return "complete", {"result": value}

    async def _handled(self, attempt: _Attempt) -> Any:
        if self._is_async:
            future = asyncio.run_coroutine_threadsafe(
                self._handler(AsyncContext(attempt)), self._handler_loop()
            )
            attempt.on_lost = future.cancel
            return await asyncio.wrap_future(future)
        done: asyncio.Future[Any] = attempt.loop.create_future()
        threading.Thread(
            target=_in_thread, args=(self._handler, Context(attempt), attempt.loop, done),
            name=f"goclaw-{attempt.lease['taskId']}", daemon=True,
        ).start()  # fmt: skip
        return await done

    def _handler_loop(self) -> asyncio.AbstractEventLoop:
        if self._handlers is None:
            self._handlers = asyncio.new_event_loop()
            threading.Thread(
                target=_run_loop, args=(self._handlers,), name="goclaw-handlers", daemon=True
            ).start()
        return self._handlers

    # -- the end -------------------------------------------------------------------------------

    async def _drained(self) -> None:
        """Wait for what runs; not for ever, and not when somebody hurries."""
        if not self._live:
            return
        hurrying = asyncio.ensure_future(self._hurry.wait())
        everyone = asyncio.ensure_future(asyncio.wait(tuple(self._live)))
        await asyncio.wait(
            {hurrying, everyone},
            timeout=limits.DRAIN_MS_MAX / 1000,
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in (hurrying, everyone):
            task.cancel()
        await asyncio.gather(hurrying, everyone, return_exceptions=True)

    async def _hand_back(self) -> None:
        """What has not ended goes back to its pool."""
        live = dict(self._live)
        patience_ms = 0 if self._client.is_away else limits.CLOSE_MS_MAX
        giving = asyncio.gather(
            *(attempt.say("release") for attempt in live.values()), return_exceptions=True
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_ms / 1000):
                await giving
        for running, attempt in live.items():
            attempt.lose(_given_up())
            running.cancel()
        await asyncio.gather(*live, return_exceptions=True)


def _in_thread(
    handler: Handler, context: Context, loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any]
) -> None:
    """Run a plain function; whatever it comes to goes to the worker's loop."""
    settle: Callable[[Any], None] = done.set_result
    value: Any = None
    try:
        value = handler(context)
    except BaseException as error:
        # Also SystemExit: a handler ends its attempt, not its thread's process.
        settle, value = done.set_exception, _raised(error)
    with contextlib.suppress(RuntimeError):  # the worker has left
        loop.call_soon_threadsafe(lambda: None if done.done() else settle(value))


def _raised(error: BaseException) -> Exception:
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()


def _fault(attempt: _Attempt, error: BaseException) -> tuple[str, dict[str, Any]]:
    name = type(error).__name__
    _log.warning("%s: the handler raised", attempt.lease["taskId"], exc_info=error)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = "".join(f" in {os.path.basename(frame.filename)}:{frame.name}" for frame in where)
    fault = _failed("worker_fault", f"{name}: {error}", retryable=True)
    return "fail", {**fault, "fingerprint": f"{name}{place}"[: limits.ID_CHARS_MAX]}


def _failed(code: str, error: object, *, retryable: bool) -> dict[str, Any]:
    message = str(error)[: limits.MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode()
    return {"code": code, "message": message, "retryable": retryable}


def _given_up() -> LeaseLost:
    return LeaseLost("The lease is gone.", hint="Stop at once; nothing that is said counts.")
