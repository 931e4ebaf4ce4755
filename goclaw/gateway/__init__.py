"""Floor 4: sockets and methods. One connection handler behind every transport."""

from goclaw.gateway.server import Gateway
from goclaw.gateway.services import Services

__all__ = ["Gateway", "Services"]
