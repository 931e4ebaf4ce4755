"""goclaw: a durable runtime for agents on one machine."""

__version__ = "0.1.0"
