"""What a program needs to be an external worker; docs/workers.md has an example.

Owns the public name. Not in here: the code (``client/worker.py``).
"""

from goclaw.client.worker import AsyncContext, Context, EffectFailed, Failure, Retry, Worker

__all__ = ["AsyncContext", "Context", "EffectFailed", "Failure", "Retry", "Worker"]
