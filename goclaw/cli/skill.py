"""`goclaw skill list`: read from the disk, so it needs no daemon.

Owns how skills are shown. Not in here: finding them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from goclaw.cli import show
from goclaw.cli.place import home_of
from goclaw.skills.catalog import Catalog

if TYPE_CHECKING:
    import argparse

__all__ = ["list_skills"]


def list_skills(options: argparse.Namespace) -> int:
    """The skills of the home; what only looks like one goes to stderr."""
    catalog = Catalog(home_of(options).skills)
    for problem in catalog.problems:
        show.tell(f"{problem.folder}: {problem.error}")
    if options.json:
        for skill in catalog:
            show.json_line(skill.as_listing())
        return 0
    show.table(
        ("skill", "version", "source", "sandbox", "effect", "description"),
        (
            (skill.name, skill.manifest.version, skill.source, skill.sandbox,
             skill.manifest.effect.value, skill.manifest.description)
            for skill in catalog
        ),
    )  # fmt: skip
    return 0
