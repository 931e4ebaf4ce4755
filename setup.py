"""Builds the four native modules; everything else is declared in pyproject.toml.

Where no C compiler works the package still installs and runs its pure twin, and ``goclaw status``
says ``"native": false``. ``GOCLAW_BUILD=require`` turns a failed build into an error (CI uses it),
``GOCLAW_BUILD=pure`` builds nothing, ``GOCLAW_TRACE=1`` adds line tracing and annotation.
"""

import os
import sys
from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError

MODULES = ("frame", "ring", "rules", "writer")
MODE = os.environ.get("GOCLAW_BUILD", "auto")
TRACE = os.environ.get("GOCLAW_TRACE") == "1"


class OptionalBuild(build_ext):
    """A missing compiler costs speed, not the installation; a broken source is never silent."""

    def run(self) -> None:
        """Build; go on without native code only where no compiler works."""
        try:
            super().run()
        except BaseError as error:
            if MODE == "require" or compiler_works(self):
                raise
            print(
                f"goclaw: no working C compiler ({error}); installing the pure build",
                file=sys.stderr,
            )
            # setuptools asks for the outputs again when it copies them into the tree
            self.extensions = []


def compiler_works(command: build_ext) -> bool:
    """True when an empty C file against Python.h compiles: then a failed build is our fault."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "probe.c")
        with open(path, "w") as file:
            file.write("#include <Python.h>\n#include <pthread.h>\nint probe(void){return 0;}\n")
        try:
            command.compiler.compile([path], output_dir=folder, include_dirs=command.include_dirs)
        except Exception:  # any failure here means: no compiler
            return False
    return True


def sources(name: str) -> list[str]:
    """A native module's own text and what it may include: a changed one builds anew. The sdist
    ships these, and without them only the C that Cython made.
    """
    parts = sorted(file for kind in ("h", "pxd", "pxi") for file in glob(f"goclaw/_fast/*.{kind}"))
    return [f"goclaw/_fast/{name}.pyx", *parts]


def extensions() -> list[Extension]:
    """The native modules, or none where the pure build was asked for."""
    if MODE == "pure":
        return []
    from Cython.Build import cythonize

    built: list[Extension] = cythonize(
        [
            Extension(
                f"goclaw._fast.{name}",
                [f"goclaw/_fast/{name}.pyx"],
                include_dirs=["goclaw/_fast"],
                depends=sources(name),
                extra_compile_args=["-O2", "-pthread", "-fno-strict-aliasing"],
                extra_link_args=["-pthread"],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if TRACE else [],
            )
            for name in MODULES
        ],
        compiler_directives={"language_level": "3", "linetrace": TRACE},
        annotate=TRACE,
    )
    return built


setup(ext_modules=extensions(), cmdclass={"build_ext": OptionalBuild})
