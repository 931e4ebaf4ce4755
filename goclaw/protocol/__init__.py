"""The wire without I/O: JSON-RPC, the messages, and what may be sent when."""
