"""The conformance kit: does a server keep the wire's promises? (W-12)

Owns a tiny reference client, the laws that every message is held to, and named checks, all without
the daemon's code, so that its mistakes are not made here too. Not in here: the client that programs
use (``goclaw.client``).

    python -m goclaw.conformance ws://127.0.0.1:PORT/ws
    python -m goclaw.conformance -- goclaw acp
"""

from __future__ import annotations

from goclaw.conformance.checks import CHECKS, Kit, Plan, Result
from goclaw.conformance.client import Broken, Client, Refused
from goclaw.conformance.laws import Ledger

__all__ = ["CHECKS", "Broken", "Client", "Kit", "Ledger", "Plan", "Refused", "Result"]
