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
#!/bin/sh
[ -e /proc/cmdline ] || mount -t proc proc /proc
[ -e /dev/null ] || mount -t devtmpfs dev /dev
exec >/dev/console 2>&1 </dev/console
slot=$(sed 's/.*twinlock.slot=\\([a-z]*\\).*/\\1/' /proc/cmdline)
echo "{MARK} system=$(cat /etc/system) slot=$slot end"
exec sh
"""
# What the init above, `provision/scripts/preinit` and tests use.
_APPLETS: Final = (
    *(
        "sh",
        "mount",
        "umount",
        "mkdir",
        "cat",
        "grep",
        "readlink",
        "head",
        "tr",
        "wc",
        "chmod",
        "chown",
        "stat",
    ),
    *("find", "mv", "rm", "cp", "sync", "printf", "echo", "sed", "ls", "touch", "reboot", "dd", "sha256sum"),
)
TINY_INIT: Final = "/sbin/lab-init"


def debian(architecture: Architecture, packages: Sequence[str]) -> Path:
    """A tar archive of a Debian system with these packages and what they depend on.

    Raises DeviceError `package-missing` without mmdebstrap, `io-error` when Debian's mirror is out of reach.
    """
    if architecture not in DEBIAN_NAMES:
        raise error("input-invalid", f"architecture {architecture!r} is not known: {sorted(DEBIAN_NAMES)}")
    names = sorted(packages)
    recipe = json.dumps(["debian", 2, SUITE, architecture, names])

    def make(out: Path) -> None:
        arguments = ["mmdebstrap", "--variant=extract", f"--include={','.join(names)}", "--quiet"]
        arguments += [
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            f"--arch={DEBIAN_NAMES[architecture]}",
            SUITE,
            str(out),
        ]
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
        recipe = json.dumps(["member", 2, SUITE, architecture, packages, prefix])

        def make(out: Path) -> None:
            with tarfile.open(debian(architecture, packages)) as archive, os_errors(str(out)):
                out.write_bytes(_member(archive, prefix))

        return cached(f"{name}-{architecture}", recipe, ".bin", make)

    return maker("boot/vmlinuz"), maker("usr/bin/busybox")


def tiny(
    architecture: Architecture, folder: Path, system: str, *, bare: bool = True, kernel: Path | None = None
) -> Path:
    """Fills `folder` with a system that prints `TWINLOCK-GUEST system=<system> slot=<slot> end` and waits.

    A `bare` one starts at once; the other has its init at `TINY_INIT`, for `provision.rootfs` to install
    before it. `kernel` is booted instead of Debian's.
    """
    debians, busybox = kernel_and_busybox(architecture)
    with os_errors(f"tree {folder}"):
        for name in ("bin", "boot", "dev", "etc", "proc", "sbin", "sys", "run", "tmp", "usr/lib/twinlock"):
            (folder / name).mkdir(parents=True)
        (folder / "boot/vmlinuz").write_bytes((kernel or debians).read_bytes())
        (folder / "bin/busybox").write_bytes(busybox.read_bytes())
        (folder / "bin/busybox").chmod(0o755)
        for applet in _APPLETS:
            (folder / "bin" / applet).symlink_to("busybox")
        (folder / "etc/system").write_text(system + "\n", "ascii")
        init = folder / TINY_INIT.lstrip("/")
        init.write_text(_TINY_INIT, "ascii")
        init.chmod(0o755)
        if bare:
            (folder / "usr/lib/twinlock/preinit").symlink_to(TINY_INIT)
    return folder
