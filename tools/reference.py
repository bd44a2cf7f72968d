"""Write the generated pages of docs/reference from the code: error codes, limits, what the doctor finds.

`make format` runs it too. A test compares the pages with the code.
"""

from __future__ import annotations

from pathlib import Path

from twinlock.agent.doctor import findings
from twinlock.core import limits
from twinlock.core.errors import CATALOGUE, EXIT_CODES, Kind

REFERENCE = Path(__file__).resolve().parent.parent / "docs/reference"
MEANINGS = {
    Kind.INPUT: "what was given is wrong: correct it",
    Kind.TRANSPORT: "the network or the server: it is tried again, later and later",
    Kind.TRUST: "not signed, not fresh or not the same bytes: never tried again with the same bytes",
    Kind.COMPATIBILITY: "right, but not for this device: skipped",
    Kind.DEVICE: "space, slots, boot control or files of this machine",
    Kind.HEALTH: "the new slot did not pass: rolled back",
    Kind.POLICY: "not allowed now",
    Kind.INTERNAL: "a fault in Twinlock",
}


def errors_page() -> str:
    """docs/reference/errors.md."""
    lines = [
        "# Error codes",
        "",
        "Codes are stable: they go over the wire, and are never renamed or reused. A command that fails",
        "prints `error[CODE]: what happened -- hint: what to do` on standard error, or with `--json` one",
        'object, `{"version":1,"error":{"code":...,"what":...,"hint":...}}`, and ends with its exit code.',
    ]
    for kind in Kind:
        lines += [
            "",
            f"## {kind.value}: exit code {EXIT_CODES[kind]}",
            "",
            f"{MEANINGS[kind].capitalize()}.",
            "",
        ]
        lines += ["| code | what to do |", "|---|---|"]
        lines += [f"| `{code}` | {spec.hint} |" for code, spec in CATALOGUE.items() if spec.kind is kind]
    return "\n".join(lines) + "\n"


def shown(name: str, value: int) -> str:
    if "BYTES" in name and value >= limits.KIB:
        for unit, size in (("GiB", limits.GIB), ("MiB", limits.MIB), ("KiB", limits.KIB)):
            if value % size == 0:
                return f"{value // size} {unit}"
    return f"{value:,}"


def limits_page() -> str:
    """docs/reference/limits.md."""
    lines = [
        "# Limits",
        "",
        "What comes from outside and is above its limit is refused before anything is allocated for it. The",
        "limits are constants in `twinlock.core.limits`; units stand last in their names.",
        "",
        "| limit | value |",
        "|---|---|",
    ]
    for name, value in vars(limits).items():
        if name.isupper() and name not in ("KIB", "MIB", "GIB"):
            rows = (
                {f"{name} of {key}": size for key, size in value.items()}
                if isinstance(value, dict)
                else {name: value}
            )
            lines += [f"| `{label}` | {shown(name, size)} |" for label, size in rows.items()]
    return "\n".join(lines) + "\n"


def doctor_page() -> str:
    """docs/reference/doctor.md."""
    lines = [
        "# What the doctor finds",
        "",
        "Codes of `twinlock-agent doctor`, which are stable. A fault keeps the device from updating or from",
        "coming back, and makes the exit code 6; a warning does neither. With `--json` one object is",
        'printed, `{"version":1,"faults":N,"warnings":N,"findings":[...]}`; a finding has `check`, `code`,',
        "`level`, `what` and `hint`, and what is as it should be has the code and level `ok`.",
        "",
        "| code | | what to do |",
        "|---|---|---|",
    ]
    lines += [f"| `{code}` | {spec.level} | {spec.hint} |" for code, spec in findings.CATALOGUE.items()]
    return "\n".join(lines) + "\n"


PAGES = {"errors.md": errors_page, "limits.md": limits_page, "doctor.md": doctor_page}


def main() -> None:
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
        print(f"wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
