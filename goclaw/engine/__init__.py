"""Floor 3: queue life. Admit, claim, lease, effects, approvals, publish."""

from goclaw.engine.runtime import Engine

__all__ = ["Engine"]
