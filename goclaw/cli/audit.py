"""`goclaw audit verify|show`: who was allowed what, and that nobody has touched the record.

Owns how it is shown. Not in here: the chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from goclaw.cli import show
from goclaw.cli.place import Place, home_of

if TYPE_CHECKING:
    import argparse

__all__ = ["records", "verify"]

_METHOD = "_goclaw/admin/audit"


def verify(options: argparse.Namespace) -> int:
    """0 when every record is as it was written, 1 when one is not."""
    with Place(home_of(options)) as client:
        found = client.call(_METHOD, {"verb": "verify"})
    if options.json:
        show.json_line(found)
        return 0 if found["ok"] else 1
    for fault in found["faults"]:
        print(f"record {fault['seq']} of the {fault['where']}: {fault['what']}")
    if found["more"]:
        print("and more")
    if found["ok"]:
        print(f"{found['records']} records, none removed, changed or moved; link {found['link']}")
    return 0 if found["ok"] else 1


def records(options: argparse.Namespace) -> int:
    """The last records, oldest first."""
    found: list[dict[str, Any]] = []
    after = None
    with Place(home_of(options)) as client:
        while len(found) < options.last:
            params = {"verb": "list", "after": after, "limit": min(options.last - len(found), 1000)}
            page = client.call(_METHOD, params)
            found += page["records"]
            after = page.get("next")
            if after is None:
                break
    found.reverse()
    if options.json:
        for one in found:
            show.json_line(one)
        return 0
    show.table(
        ("record", "at", "effect", "action", "resource", "by", "rule", "times"),
        (_row(one["seq"], one["at"], one["record"]) for one in found),
    )
    return 0


def _row(seq: int, at: str, record: dict[str, Any]) -> tuple[Any, ...]:
    if "subject" not in record:
        times = sum(one["count"] for one in record.get("allowed", ()))
        return (seq, at, "allow", record.get("type"), "", "", "", times)
    who = record["subject"]
    by = f"{who['kind']}/{who['id']}@{who['origin']}"
    return (
        seq, at, record["effect"], record["action"], record["resource"], by, record["ruleId"],
        record.get("count", 1),
    )  # fmt: skip
