"""Compares a kernel's configuration with fragments of one: what is missing, what is wrong, and why.

Pure: texts in, findings out. The fragments are `provision/kernel/*.config`, and on a device the copies in
/usr/lib/twinlock/kernel. A fragment's options carry their reasons (the comment above them) and their
rules (`#: wanted module least`); both are read from there, so that text and check cannot drift apart.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.errors import error
from twinlock.core.limits import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

CONFIG_SIZE_BYTES_MAX: Final = 4 * MIB
CONFIG_OPTIONS_MAX: Final = 50_000
NOT_SET: Final = "n"
_GZIP: Final = b"\x1f\x8b"
_SET: Final = re.compile(r'CONFIG_([A-Za-z0-9_]+)=([ymn]|-?[0-9]+|0x[0-9a-fA-F]+|"[^"]*")', re.ASCII)
_UNSET: Final = re.compile(r"# CONFIG_([A-Za-z0-9_]+) is not set", re.ASCII)
_RULES: Final = frozenset({"wanted", "module", "least"})


@dataclass(frozen=True, slots=True)
class Option:
    """One line of a fragment. `value` is y, m, n, a number or a quoted text; `reason` is one paragraph."""

    name: str
    value: str
    reason: str
    fragment: str
    wanted: bool = False
    module: bool = False
    least: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """An option that is not as it should be. `found` is None when the configuration does not name it."""

    option: Option
    found: str | None

    @property
    def required(self) -> bool:
        """Whether the device does not work right without it."""
        return not self.option.wanted

    def show(self) -> str:
        """One line for people."""
        weight = "required" if self.required else "wanted"
        found = "missing" if self.found is None else f"is {self.found}"
        return f"{weight}: CONFIG_{self.option.name}={self.option.value} ({found}): {self.option.reason}"


def parse_config(data: bytes) -> dict[str, str]:
    """Options of a kernel configuration, plain (`.config`) or compressed (`/proc/config.gz`); `n` if not set.

    Raises InputError `input-too-large` beyond 4 MiB or 50,000 options, `input-wrong-type` when it is none.
    """
    if data.startswith(_GZIP):
        data = _unpack(data)
    if len(data) > CONFIG_SIZE_BYTES_MAX:
        raise error(
            "input-too-large", f"the kernel configuration is larger than {CONFIG_SIZE_BYTES_MAX} bytes"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error("input-wrong-type", "the kernel configuration is not a text") from problem
    options: dict[str, str] = {}
    for line in text.splitlines():
        if match := _SET.fullmatch(line.strip()):
            options[match[1]] = match[2]
        elif match := _UNSET.fullmatch(line.strip()):
            options[match[1]] = NOT_SET
        if len(options) > CONFIG_OPTIONS_MAX:
            raise error("input-too-large", f"more than {CONFIG_OPTIONS_MAX} kernel options")
    if not options:
        raise error("input-wrong-type", "the file has no kernel option: give a .config or /proc/config.gz")
    return options


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, CONFIG_SIZE_BYTES_MAX + 1)
    except zlib.error as problem:
        raise error("input-wrong-type", f"the kernel configuration does not unpack: {problem}") from problem
    if not unpacker.eof and len(text) <= CONFIG_SIZE_BYTES_MAX:
        raise error("input-wrong-type", "the compressed kernel configuration is cut short")
    return text


def parse_fragment(text: str, name: str) -> list[Option]:
    """The options of a fragment with their reasons and rules.

    Raises InputError `input-invalid` for a line that is neither an option nor a comment, or an unknown rule.
    """
    options: list[Option] = []
    reason: list[str] = []
    last_reason = ""
    rules: set[str] = set()
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        match = _SET.fullmatch(line) or _UNSET.fullmatch(line)
        if not line:
            last_reason, reason, rules = " ".join(reason) or last_reason, [], set()
        elif line.startswith("#:"):
            rules = set(line[2:].split())
            if not rules <= _RULES:
                raise error("input-invalid", f"{name}.config line {number}: unknown rule {line!r}")
        elif match is not None:
            value = match[2] if match.re is _SET else NOT_SET
            said = " ".join(reason) or last_reason
            flags = {rule: rule in rules for rule in _RULES}
            options.append(Option(match[1], value, said, name, **flags))
        elif line.startswith("#"):
            reason.append(line.lstrip("# "))
        else:
            raise error("input-invalid", f"{name}.config line {number}: {line[:60]!r} is no option")
    return options


def fragments_for(config: Mapping[str, str]) -> list[str]:
    """The fragments that such a kernel needs in any case: `update`, and those for how it is started."""
    names = ["update"]
    if config.get("X86") == "y" or config.get("EFI") == "y":
        names.append("efi")
    if config.get("OF") == "y" and config.get("X86") != "y":
        names.append("devicetree")
    return names


def check(config: Mapping[str, str], options: Iterable[Option]) -> list[Finding]:
    """What is not as the options say, required ones first. An option named twice is judged by each line."""
    findings = [
        Finding(option, config.get(option.name))
        for option in options
        if not _fits(config.get(option.name), option)
    ]
    return sorted(findings, key=lambda finding: not finding.required)


def _fits(found: str | None, option: Option) -> bool:
    if option.value == NOT_SET:
        return found in (None, NOT_SET)
    if found is None:
        return False
    if option.least:
        return _number(found) is not None and (_number(found) or 0) >= (_number(option.value) or 0)
    return found == option.value or (option.module and found == "m")


def _number(text: str) -> int | None:
    try:
        return int(text, 0)
    except ValueError:
        return None
