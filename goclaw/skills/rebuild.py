"""Rebuilds the built-in skills from their C sources: ``python -m goclaw.skills.rebuild``.

Owns the compiler's command line. Not in here: anything that runs in the daemon; an installation
uses the modules that lie beside the sources.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["BUILTIN", "CLANG_VERSION", "build", "clang_version", "main"]

BUILTIN: Final = Path(__file__).parent / "builtin"
CLANG_VERSION: Final = "14.0.6"  # the compiler whose output lies in the repository (Debian 12)

_FLAGS: Final = (
    "--target=wasm32",
    "-std=c11",
    "-O3",
    "-ffreestanding",
    "-nostdlib",
    "-msimd128",
    "-mbulk-memory",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wl,--no-entry",
    "-Wl,--strip-all",
    "-Wl,--stack-first",  # an overflow traps instead of running into the data
    "-Wl,-z,stack-size=131072",
)


def clang_version() -> str | None:
    """The version of a clang that builds for wasm32, None when there is none on PATH."""
    if shutil.which("clang") is None or shutil.which("wasm-ld") is None:
        return None
    answer = subprocess.run(
        ["clang", "--version"], capture_output=True, text=True, check=False
    ).stdout
    found = re.search(r"clang version (\d+(?:\.\d+)*)", answer)
    return found[1] if found else None


def build(name: str, target: Path) -> bytes:
    """Compiles the built-in ``name`` to ``target`` and returns the module's bytes.

    Raises subprocess.CalledProcessError with the compiler's messages in ``stderr``.
    """
    # run inside the source folder with relative names, so that no path can reach the output
    command = ["clang", *_FLAGS, "-I", "../include", "-o", str(target.absolute()), "main.c"]
    subprocess.run(command, cwd=BUILTIN / name, check=True, capture_output=True, text=True)
    return target.read_bytes()


def main() -> int:
    """Rebuilds every built-in in place and writes the new hashes into the manifests."""
    if clang_version() is None:
        print("goclaw: clang and wasm-ld are needed (Debian: clang lld)", file=sys.stderr)
        return 1
    for manifest in sorted(BUILTIN.glob("*/skill.toml")):
        target = manifest.with_name("skill.wasm")
        try:
            module = build(manifest.parent.name, target)
        except subprocess.CalledProcessError as error:
            print(f"goclaw: {target} does not compile\n{error.stderr}", file=sys.stderr)
            return 1
        digest = hashlib.sha256(module).hexdigest()
        target.chmod(0o644)
        text = manifest.read_text("utf-8")
        manifest.write_text(re.sub(r'(?m)^sha256 = ".*"$', f'sha256 = "{digest}"', text), "utf-8")
        print(f"{manifest.parent.name}: {target.stat().st_size} bytes, sha256 {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
