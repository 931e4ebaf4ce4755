"""Floor 2: the decision point and its language (A-1, A-3). Pure: no I/O, no time of its own.

Owns what is allowed. Not in here: enforcement, approvals, and the storage of decisions.
"""

__all__ = ["address", "default", "document", "lines", "pdp", "rates", "review"]
