"""`twinlock kernel`: whether a kernel's configuration has what an updatable device needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from twinlock.cli.output import JsonOption, Output, Table
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error
from twinlock.provision import kernel_check
from twinlock.provision.kernel_check import Finding

app: Final = typer.Typer(no_args_is_help=True, help="Check a kernel's configuration.")


def _finding_data(finding: Finding) -> dict[str, Any]:
    option = finding.option
    return {
        "option": f"CONFIG_{option.name}",
        "wanted": option.value,
        "found": finding.found,
        "required": finding.required,
        "fragment": option.fragment,
        "reason": option.reason,
    }


def _row(finding: Finding) -> tuple[str, ...]:
    option = finding.option
    weight = "required" if finding.required else "wanted"
    found = "missing" if finding.found is None else finding.found
    return weight, f"CONFIG_{option.name}={option.value}", found, option.fragment, option.reason


@app.command()
def check(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", show_default=False, help=".config or /proc/config.gz")
    ],
    fragment: Annotated[
        list[str] | None,
        typer.Option(
            "--fragment", help="Check against this one; repeat it for more. Else what the kernel needs."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Say which options are missing or wrong, and why each is needed. Fails when a required one is.

    Example: twinlock kernel check /proc/config.gz --fragment update --fragment low-memory
    """
    found = kernel_check.parse_config(
        read_bounded(config, kernel_check.CONFIG_SIZE_BYTES_MAX, "kernel configuration")
    )
    names = fragment or kernel_check.fragments_for(found)
    options = [option for name in names for option in kernel_check.shipped_fragment(name)]
    findings = kernel_check.check(found, options)
    required = [finding for finding in findings if finding.required]
    Output(as_json).show(
        {"fragments": names, "checked": len(options), "findings": [_finding_data(one) for one in findings]},
        f"{len(options)} options of {', '.join(names)} checked",
        Table(
            ("weight", "option", "is", "fragment", "why"),
            [_row(one) for one in findings],
            empty="every option is as it should be",
        ),
    )
    if required:
        listed = ", ".join(f"CONFIG_{finding.option.name}" for finding in required[:5])
        more = f" and {len(required) - 5} more" if len(required) > 5 else ""
        raise error("kernel-options", f"{config}: {listed}{more} not as required")


@app.command()
def fragment(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="None: list them all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a configuration fragment, for the kernel's scripts/kconfig/merge_config.sh.

    Example: twinlock kernel fragment update > update.config
    """
    output = Output(as_json)
    if name is None:
        names = kernel_check.fragment_names()
        output.show({"fragments": names}, *names)
        return
    text = kernel_check.fragment_text(name)
    output.show({"name": name, "text": text}, text.rstrip("\n"))
