"""Services: what runs as long as the daemon does, and may not end unseen.

Owns what becomes of one that fails by a fault of the program: it is said with its stack, counted,
and the service begins again. Not in here: any service, and the failures that one expects.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from goclaw.core import limits, log
from goclaw.core.metrics import SERVICE_FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["keep_running"]

_log = log.logger("core.services")


def keep_running(
    name: str, service: Callable[[], Coroutine[object, object, None]]
) -> asyncio.Task[None]:
    """Run ``service`` on this loop until it returns or the task is cancelled.

    An exception is a fault of the program: a timer or a lane that died of it would be missed by
    nobody, and all that waits for it would wait for ever. It is logged as critical, counted in
    ``goclaw_service_faults_total``, and after ``limits.SERVICE_PAUSE_MS`` the service begins again.
    """
    return asyncio.create_task(_kept(name, service), name=name)


async def _kept(name: str, service: Callable[[], Coroutine[object, object, None]]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            await service()
        except Exception as error:
            if not loop.is_running():
                return  # thrown away with its loop: nobody waits for it
            SERVICE_FAULTS[name] += 1
            _log.critical(
                "a service failed; it begins again", exc_info=True,
                extra={"data": {"service": name, "error": str(error)}},
            )  # fmt: skip
        else:
            return
        never: asyncio.Future[None] = loop.create_future()
        await asyncio.wait([never], timeout=limits.SERVICE_PAUSE_MS / 1000)
