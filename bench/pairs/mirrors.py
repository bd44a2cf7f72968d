"""Where Debian packages come from: the machine's own apt configuration, and nowhere else."""

from __future__ import annotations

import subprocess

from bench.pairs.tools import MissingError

RELEASE = "bookworm"
SUITES = (RELEASE, f"{RELEASE}-security", f"{RELEASE}-updates")
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_FORMAT = "$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)"


def sources() -> dict[str, str]:
    """One apt source line for each of `SUITES`. Raises MissingError when the machine knows no such mirror."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = {}
    for line in done.stdout.splitlines():
        origin, codename, component, uri = line.split("|")
        if origin == "Debian" and component == "main" and codename in SUITES:
            found[codename] = f"deb [signed-by={_KEYRING}] {uri} {codename} main"
    missing = [suite for suite in SUITES if suite not in found]
    if missing:
        raise MissingError(
            f"apt knows no mirror of Debian {', '.join(missing)}: the pairs are built from these archives. "
            "Add them to the machine's apt sources (they need not be installed from), run apt-get update."
        )
    return found
