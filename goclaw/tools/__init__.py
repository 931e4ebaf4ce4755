"""Floor 4: what a brain may call, and the one gate that every call goes through.

Owns the registry, the gate, the opening of files and the built-in tools. Not in here: the journal
(engine), WASM (skills, which the daemon hands in as a source).
"""

__all__: list[str] = []  # read by module
