"""Root file systems for virtual devices, from Debian packages, made once and kept in the cache.

`debian` is a Debian system as mmdebstrap unpacks it (no maintainer script runs, so no root and no emulation
of the guest's architecture is needed). `tiny` takes its kernel and a static busybox, nothing else: a system
that says on its console which slot it is, for tests of what comes before user space.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.lab.qemu.cache import cached
from twinlock.provision.tools import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.lab.qemu.machine import Architecture

SUITE: Final = "bookworm"
DEBIAN_NAMES: Final[dict[str, str]] = {"arm64": "arm64", "x86-64": "amd64"}
# NVMe, ext4 and the serial consoles are built into Debian's cloud kernels: no initrd is needed.
KERNELS: Final[dict[str, str]] = {"arm64": "linux-image-cloud-arm64", "x86-64": "linux-image-cloud-amd64"}
CONSOLES: Final[dict[str, str]] = {"arm64": "ttyAMA0", "x86-64": "ttyS0"}
MARK: Final = "TWINLOCK-GUEST"
_TINY_INIT: Final = f"""\
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
system=$(/bin/busybox cat /etc/system)
slot=$(/bin/busybox sed 's/.*twinlock.slot=\\([a-z]*\\).*/\\1/' /proc/cmdline)
echo "{MARK} system=$system slot=$slot end"
exec /bin/busybox sh
"""


def debian(architecture: Architecture, packages: Sequence[str]) -> Path:
    """A tar archive of a Debian system with these packages and what they depend on.

    Raises DeviceError `package-missing` without mmdebstrap, `io-error` when Debian's mirror is out of reach.
    """
    if architecture not in DEBIAN_NAMES:
        raise error("input-invalid", f"architecture {architecture!r} is not known: {sorted(DEBIAN_NAMES)}")
    names = sorted(packages)
    recipe = json.dumps(["debian", 1, SUITE, architecture, names])

    def make(out: Path) -> None:
        arguments = ["mmdebstrap", "--variant=extract", f"--include={','.join(names)}", "--quiet"]
        arguments += [f"--arch={DEBIAN_NAMES[architecture]}", SUITE, str(out)]
        run(arguments, package="mmdebstrap")

    return cached(f"debian-{architecture}", recipe, ".tar", make)


def _member(archive: tarfile.TarFile, prefix: str) -> bytes:
    for item in archive:
        if item.isfile() and item.name.removeprefix("./").startswith(prefix):
            file = archive.extractfile(item)
            if file is not None:
                return file.read()
    raise error("input-missing", f"the system archive has no {prefix}")


def kernel_and_busybox(architecture: Architecture) -> tuple[Path, Path]:
    """Debian's kernel and static busybox for an architecture, as files in the cache."""
    packages = ["busybox-static", KERNELS[architecture]]

    def maker(prefix: str) -> Path:
        name = Path(prefix).name
        recipe = json.dumps(["member", 1, SUITE, architecture, packages, prefix])

        def make(out: Path) -> None:
            with tarfile.open(debian(architecture, packages)) as archive, os_errors(str(out)):
                out.write_bytes(_member(archive, prefix))

        return cached(f"{name}-{architecture}", recipe, ".bin", make)

    return maker("boot/vmlinuz"), maker("bin/busybox")


def tiny(architecture: Architecture, folder: Path, system: str) -> Path:
    """Fills `folder` with a system that prints `TWINLOCK-GUEST system=<system> slot=<slot> end` and waits."""
    kernel, busybox = kernel_and_busybox(architecture)
    with os_errors(f"tree {folder}"):
        for name in ("bin", "boot", "dev", "etc", "proc", "usr/lib/twinlock"):
            (folder / name).mkdir(parents=True)
        (folder / "boot/vmlinuz").write_bytes(kernel.read_bytes())
        (folder / "bin/busybox").write_bytes(busybox.read_bytes())
        (folder / "bin/busybox").chmod(0o755)
        (folder / "etc/system").write_text(system + "\n", "ascii")
        init = folder / "usr/lib/twinlock/preinit"
        init.write_text(_TINY_INIT, "ascii")
        init.chmod(0o755)
    return folder
