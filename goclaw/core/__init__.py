"""Floor 1: clock, limits, states, records, errors, config, home, log, faults.

Owns what every floor needs to know. Not in here: anything that knows a floor above.
"""

__all__: list[str] = []  # read by module: from goclaw.core import limits
