"""skill.toml: what a skill says about itself (K-3), read whole or refused.

Owns the grammar of the manifest. Not in here: where manifests lie (``catalog.py``), and whether a
wanted capability is granted (policy).
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from typing import Any, Final

from goclaw.core import limits
from goclaw.core.decisions import ACTIONS
from goclaw.core.errors import SkillRefused
from goclaw.core.states import EffectClass
from goclaw.skills import abi

__all__ = ["Limits", "Manifest", "parse_manifest"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one call. A manifest may lower them, never raise them."""

    fuel: int = limits.WASM_FUEL
    wall_ms: int = limits.WASM_WALL_MS_MAX
    memory_bytes: int = limits.WASM_MEMORY_BYTES_MAX
    table_elements: int = limits.WASM_TABLE_ELEMENTS_MAX
    output_bytes: int = limits.TOOL_OUTPUT_BYTES_MAX
    log_bytes: int = limits.WASM_LOG_BYTES_MAX
    host_calls: int = limits.WASM_HOST_CALLS_MAX


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A valid manifest. ``sha256`` is that of the module, in lower-case hex."""

    name: str
    version: str
    abi: str
    sha256: str
    description: str
    effect: EffectClass
    capabilities: tuple[str, ...]
    input: dict[str, Any]
    output: dict[str, Any]
    limits: Limits

    @property
    def file_argument(self) -> str | None:
        """The property of the input with ``format: file``: its file becomes stdin (K-2)."""
        for name, schema in self.input.get("properties", {}).items():
            if schema.get("format") == "file":
                return str(name)
        return None

    @property
    def host_calls(self) -> tuple[str, ...]:
        """What it wants of its host, of ``abi.HOST_CALLS``."""
        wanted = [one.partition(":") for one in self.capabilities]
        return tuple(dict.fromkeys(name for action, _, name in wanted if action == _HOST_ACTION))


_NAME: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_NAME_CHARS_MAX: Final = 64  # as the Agent Skills standard
_DESCRIPTION_CHARS_MAX: Final = 1_024  # as the Agent Skills standard
_VERSION: Final = re.compile(
    r"(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)\.(?:0|[1-9]\d*)(?:[-+][0-9A-Za-z.+-]+)?"
)
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_CAPABILITY: Final = re.compile(r"[a-z]+(?:\.[a-z]+)*(?::\S+)?")
_HOST_ACTION: Final = "wasm.host"
_FIELDS: Final[dict[str, tuple[type, str]]] = {
    "name": (str, "a string"),
    "version": (str, "a string"),
    "abi": (str, "a string"),
    "sha256": (str, "a string"),
    "description": (str, "a string"),
    "effect": (str, "a string"),
    "capabilities": (list, "a list of strings"),
    "input": (dict, "a table with a JSON Schema"),
    "output": (dict, "a table with a JSON Schema"),
    "limits": (dict, "a table, empty for the defaults"),
}


def parse_manifest(text: bytes) -> Manifest:
    """Reads the bytes of a skill.toml. Anything missing, unknown or wrong: SkillRefused, and the
    message names the field (or, where it is no TOML, the line).
    """
    fields = _table(text)
    try:
        effect = EffectClass(fields["effect"])
    except ValueError:
        known = ", ".join(EffectClass)
        raise _refused("effect", f"{fields['effect']!r} is none of {known}") from None
    _match("name", fields["name"], _NAME, "lower-case words joined by '-'")
    if len(fields["name"]) > _NAME_CHARS_MAX:
        raise _refused("name", f"longer than {_NAME_CHARS_MAX} characters")
    _match("version", fields["version"], _VERSION, "MAJOR.MINOR.PATCH")
    _match("sha256", fields["sha256"], _SHA256, "64 lower-case hexadecimal digits")
    if not 0 < len(fields["description"].strip()) <= _DESCRIPTION_CHARS_MAX:
        raise _refused("description", f"it needs 1 to {_DESCRIPTION_CHARS_MAX} characters")
    for index, capability in enumerate(fields["capabilities"]):
        where = f"capabilities[{index}]"
        if not isinstance(capability, str):
            raise _refused(where, "it must be a string")
        _match(where, capability, _CAPABILITY, "an action such as net.connect:HOST")
        _check_capability(where, capability)
    _check_schema("input", fields["input"])
    _check_schema("output", fields["output"])
    abi.resolve(fields["abi"])
    return Manifest(
        **{
            **fields,
            "effect": effect,
            "capabilities": tuple(fields["capabilities"]),
            "limits": _parse_limits(fields["limits"]),
        }
    )


def _check_capability(where: str, capability: str) -> None:
    """It must be an action of the policy's; of the host's calls, one that there is."""
    action, _, name = capability.partition(":")
    if action not in ACTIONS:
        near = difflib.get_close_matches(action, ACTIONS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise _refused(where, f"{action!r} is no action of the policy{meant}")
    if action == _HOST_ACTION and name not in abi.HOST_CALLS:
        known = ", ".join(f"{_HOST_ACTION}:{one}" for one in abi.HOST_CALLS)
        raise _refused(where, f"there is no host call {capability!r}; known are {known}")


def _table(text: bytes) -> dict[str, Any]:
    if len(text) > limits.SKILL_MANIFEST_BYTES_MAX:
        raise SkillRefused(f"skill.toml is larger than {limits.SKILL_MANIFEST_BYTES_MAX} bytes.")
    try:
        fields = tomllib.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise SkillRefused(f"skill.toml is no TOML: {error}.") from None
    if unknown := sorted(fields.keys() - _FIELDS.keys()):
        raise _refused(unknown[0], f"unknown field; known are {', '.join(_FIELDS)}")
    for name, (kind, wanted) in _FIELDS.items():
        if name not in fields:
            raise _refused(name, f"the field is missing; it must be {wanted}")
        if not isinstance(fields[name], kind):
            raise _refused(name, f"it must be {wanted}")
    return fields


def _parse_limits(table: dict[str, Any]) -> Limits:
    highest = Limits()
    known = [field.name for field in dataclasses.fields(Limits)]
    for name, value in table.items():
        if name not in known:
            raise _refused(f"limits.{name}", f"unknown field; known are {', '.join(known)}")
        bound = getattr(highest, name)
        # a bool is an int to Python, never to the author of a manifest
        if type(value) is not int or not 0 < value <= bound:
            raise _refused(f"limits.{name}", f"it must be a whole number from 1 to {bound}")
    return Limits(**table)


def _check_schema(where: str, schema: dict[str, Any]) -> None:
    """What goclaw itself relies on; the rest of JSON Schema is the validator's business."""
    if schema.get("type") != "object":
        raise _refused(f"{where}.type", 'it must be "object"')
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        raise _refused(f"{where}.properties", "it must be a table")
    files = []
    for name, part in properties.items():
        if not isinstance(part, dict):
            raise _refused(f"{where}.properties.{name}", "it must be a table")
        if part.get("format") == "file":
            if part.get("type") != "string":
                raise _refused(f"{where}.properties.{name}.type", 'a file is a "string"')
            files.append(name)
    if where == "output" and files:
        raise _refused(f"output.properties.{files[0]}.format", "a result is no file")
    if _count_files(schema) > len(files):
        raise _refused(where, 'format = "file" is for the properties of the object itself')
    if len(files) > 1:
        raise _refused(f"input.properties.{files[1]}.format", "a second file; stdin is only one")


def _count_files(schema: object) -> int:
    if isinstance(schema, list):
        return sum(_count_files(part) for part in schema)
    if not isinstance(schema, dict):
        return 0
    return (schema.get("format") == "file") + sum(_count_files(part) for part in schema.values())


def _match(where: str, value: str, pattern: re.Pattern[str], wanted: str) -> None:
    if not pattern.fullmatch(value):
        raise _refused(where, f"{value!r} is not {wanted}")


def _refused(where: str, why: str) -> SkillRefused:
    return SkillRefused(f"skill.toml: {where}: {why}.", field=where)
