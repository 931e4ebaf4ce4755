"""Floor 4: skills, WebAssembly in a sandbox: catalog, manifest, ABI, compilation, calls.

Owns how a skill is described, found, compiled and run. Not in here: whether it may run (policy),
and the journal around it (the gate in ``tools``).
"""

__all__: list[str] = []  # read by module: importing the package loads no engine
