"""Floor 1: clock, limits, states, records, errors, config, log. Knows nothing above."""
