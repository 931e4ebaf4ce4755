"""The methods about what may happen: the policy, the emergency stop, the audit.

Owns their params and the shapes of their answers. Not in here: deciding, and what is kept of it
(``engine.policies``, ``engine.halt``,
``engine.audit``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from goclaw.core import limits
from goclaw.core.clock import rfc3339
from goclaw.core.decisions import Context, Origin, Subject, SubjectKind
from goclaw.core.errors import InvalidParams
from goclaw.engine.halt import Level
from goclaw.gateway.connection import Connection, Handler, Later, Reply
from goclaw.gateway.params import Params

if TYPE_CHECKING:
    from goclaw.engine.audit import Audit
    from goclaw.engine.policies import Tested
    from goclaw.policy.review import Warned
    from goclaw.store import Secret

__all__ = ["METHODS"]

# -- the policy --------------------------------------------------------------------------------


def _subject(params: Params) -> Subject:
    """``subject``: an object, or KIND[/ID][@ORIGIN] as on the command line."""
    found = params.values.get("subject")
    if isinstance(found, str):
        kind_and_id, _, origin = found.partition("@")
        kind, _, name = kind_and_id.partition("/")
        found = {"kind": kind, "id": name, "origin": origin}
    if not isinstance(found, dict):
        raise InvalidParams("subject is KIND, KIND/ID or KIND/ID@ORIGIN.", param="subject")
    given = Params(found)
    try:
        kind = SubjectKind(str(found.get("kind")))
        default = Origin.UNIX if kind is SubjectKind.CLIENT else Origin.INTERNAL
        origin = Origin(found.get("origin") or default)
    except ValueError:
        kinds, origins = ", ".join(SubjectKind), ", ".join(Origin)
        raise InvalidParams(
            "The subject is unknown.", hint=f"Kinds: {kinds}. Origins: {origins}.", param="subject"
        ) from None
    name = found.get("id") or "-"
    if not isinstance(name, str):
        raise InvalidParams("The id of a subject is a string.", param="subject")
    return Subject(kind, name, origin, session_id=given.text_or_none("sessionId"))


async def _policy(connection: Connection, params: Params) -> Reply | Later:
    verb = params.choice("verb", tuple(_POLICY))
    decision = connection.require("admin.policy", verb)
    if verb == "reload":
        await connection.engine.audit(decision)
    return await _POLICY[verb](connection, params)


async def _explain(connection: Connection, params: Params) -> Reply:
    session_id, context = params.text_or_none("sessionId"), Context()
    if session_id is not None:
        session = await connection.engine.intake.session(session_id)
        context = Context(interactive=session.interactive, roots=session.roots)
    decision = connection.services.policies.explain(
        _subject(params),
        params.text("action"),
        params.text("resource", chars_max=limits.PATH_CHARS_MAX),
        context,
    )
    return Reply(decision.to_json())


async def _reload(connection: Connection, _params: Params) -> Reply:
    services = connection.services
    loaded = await services.policies.load(by=connection.client_id, sid=services.system_sid)
    return Reply(
        {
            "version": loaded.version,
            "was": loaded.was,
            "changed": loaded.version != loaded.was,
            "warnings": _warnings(loaded.warnings),
        }
    )


def _warnings(warned: list[Warned]) -> list[dict[str, Any]]:
    return [{"line": one.line, "message": one.message} for one in warned]


async def _history(connection: Connection, params: Params) -> Reply:
    most, before = params.page(), params.cursor("after")
    found = await connection.services.policies.history(before=before, most=most + 1)
    result: dict[str, Any] = {
        "versions": [
            {"version": one["version"], "at": rfc3339(one["at"]), "by": one["by"]}
            for one in found[:most]
        ]
    }
    if len(found) > most:
        result["next"] = str(found[most - 1]["seq"])
    return Reply(result)


async def _test(connection: Connection, params: Params) -> Later:
    text = params.text("text", chars_max=limits.POLICY_BYTES_MAX)
    within = params.number("withinMs", 1, limits.AUDIT_RETENTION_MS, _WITHIN_MS) or _WITHIN_MS
    policies, now = connection.services.policies, connection.engine.clock.wall_ms()

    async def tested() -> Reply:
        return Reply(_tested(await policies.test(text, now - within)))

    return Later(tested())


def _tested(found: Tested) -> dict[str, Any]:
    return {
        "version": found.version,
        "decisions": found.decisions,
        "skipped": found.skipped,
        "flips": [
            {
                "action": flip.action, "resource": flip.resource, "subject": flip.subject,
                "was": flip.was, "wasRule": flip.was_rule, "now": flip.now,
                "nowRule": flip.now_rule, "count": flip.times, "lastAt": rfc3339(flip.last_at_ms),
            }
            for flip in found.flips
        ],
        "warnings": _warnings(found.warnings),
    }  # fmt: skip


_WITHIN_MS: Final = 14 * limits.DAY_MS
_POLICY: Final[dict[str, Handler]] = {
    "explain": _explain, "reload": _reload, "history": _history, "test": _test,
}  # fmt: skip

# -- the emergency stop ------------------------------------------------------------------------


async def _stop(connection: Connection, params: Params) -> Reply:
    level = Level(params.choice("level", tuple(Level)))
    why = params.text_or_none("why", chars_max=limits.SAID_CHARS_MAX) or ""
    decision = connection.require("admin.stop", level)
    stopped = await connection.engine.halt.stop(
        level, by=connection.client_id, why=why, sid=connection.services.system_sid,
        decision=decision,
    )  # fmt: skip
    return Reply(stopped.to_json())


async def _resume(connection: Connection, _params: Params) -> Reply:
    decision = connection.require("admin.resume", "daemon")
    halt = connection.engine.halt
    was = halt.now
    woken = await halt.resume(
        by=connection.client_id, sid=connection.services.system_sid, decision=decision
    )
    return Reply({"resumed": was is not None, "tasks": woken})


# -- secrets -----------------------------------------------------------------------------------


async def _secret(connection: Connection, params: Params) -> Reply:
    """Values come in and never go out (A-5)."""
    verb = params.choice("verb", ("set", "list", "rm", "rotate"))
    decision = connection.require("admin.secret", verb)
    secrets = connection.services.secrets
    if verb == "list":
        return Reply({"secrets": [_secret_object(one) for one in secrets.listed()]})
    await connection.engine.audit(decision)
    name = params.text("name")
    if verb == "rm":
        await secrets.remove(name)
        return Reply({"name": name})
    value = params.text("value", chars_max=limits.SECRET_CHARS_MAX)
    if verb == "rotate":
        return Reply(_secret_object(await secrets.rotate(name, value)))
    hosts, tools = _texts(params, "hosts"), _texts(params, "tools")
    return Reply(_secret_object(await secrets.set(name, value, hosts=hosts, tools=tools)))


def _texts(params: Params, name: str) -> list[str]:
    found = params.values.get(name, [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidParams(f"{name} is a list of strings.", param=name)
    return found


def _secret_object(secret: Secret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "reference": f"secret:{secret.name}#{secret.digest}",
        "hosts": list(secret.hosts),
        "tools": list(secret.tools),
        "createdAt": rfc3339(secret.created_at),
        "updatedAt": rfc3339(secret.updated_at),
    }


# -- the audit ---------------------------------------------------------------------------------


async def _audit(connection: Connection, params: Params) -> Reply | Later:
    verb = params.choice("verb", ("list", "verify"))
    connection.require("admin.audit", verb)
    audit = connection.services.audit
    if verb == "verify":
        return Later(_verified(audit))
    most, before = params.page(), params.cursor("after")
    found = await audit.listed(before=before, most=most + 1)
    result: dict[str, Any] = {"records": found[:most]}
    if len(found) > most:
        result["next"] = str(found[most - 1]["seq"])
    return Reply(result)


async def _verified(audit: Audit) -> Reply:
    found = await audit.verify()
    return Reply(
        {
            "ok": not found.faults,
            "records": found.records,
            "link": found.link,
            "faults": [fault._asdict() for fault in found.faults],
            "more": found.more,
        }
    )


# -- answers beforehand ------------------------------------------------------------------------


async def _grant(connection: Connection, params: Params) -> Reply:
    tool, session_id = params.text("tool"), params.text_or_none("sessionId")
    session = None
    if session_id is not None:
        session = await connection.engine.intake.session(session_id)
    uses = params.number("uses", 1, limits.GRANT_USES_MAX, 1) or 1
    span_ms = params.number("forMs", 1, limits.GRANT_MS_MAX, limits.GRANT_MS) or limits.GRANT_MS
    decision = connection.require("approval.answer", f"grant/{tool}", session)
    grant_id = await connection.engine.grants.give(
        tool, sid=None if session is None else session.sid,
        resources=params.texts("resources", chars_max=limits.LABEL_CHARS_MAX),
        digests=params.texts("digests"), uses=uses, span_ms=span_ms, by=connection.client_id,
        decision=decision,
    )  # fmt: skip
    return Reply({"grantId": grant_id})


async def _grants(connection: Connection, _params: Params) -> Reply:
    found = await connection.engine.grants.listed()
    return Reply({"grants": [grant.to_json() for grant in found]})


async def _revoke(connection: Connection, params: Params) -> Reply:
    grant_id = params.text("grantId")
    decision = connection.require("approval.answer", f"revoke/{grant_id}")
    await connection.engine.grants.revoke(grant_id, decision=decision)
    return Reply({})


async def _away(connection: Connection, params: Params) -> Reply:
    away = params.flag("away", True)
    decision = connection.require("approval.answer", "away")
    await connection.engine.approvals.go_away(away, decision=decision)
    return Reply({"away": away})


METHODS: Final[dict[str, Handler]] = {
    "_goclaw/approvals/grant": _grant,
    "_goclaw/approvals/grants": _grants,
    "_goclaw/approvals/revoke": _revoke,
    "_goclaw/approvals/away": _away,
    "_goclaw/admin/audit": _audit,
    "_goclaw/admin/policy": _policy,
    "_goclaw/admin/stop": _stop,
    "_goclaw/admin/resume": _resume,
    "_goclaw/admin/secret": _secret,
}
