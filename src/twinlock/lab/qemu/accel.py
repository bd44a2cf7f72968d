"""Whether QEMU may use the processor's virtualisation here: asked of QEMU itself, not of /dev/kvm.

A machine in a cloud may offer a /dev/kvm that creates virtual machines and then cannot run ordinary code in
them. The probe therefore runs a boot sector that uses the floating-point unit, as every firmware does, and
reports through QEMU's exit status.
"""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Final, Literal

from twinlock.core.errors import error
from twinlock.provision.tools import find_tool

Accelerator = Literal["kvm", "tcg"]
ENVIRONMENT: Final = "TWINLOCK_ACCEL"
PROBE_WAIT_S_MAX: Final = 4.0
_EXIT_CODE: Final = 0x21
_EXIT_STATUS: Final = _EXIT_CODE << 1 | 1  # what isa-debug-exit makes of the code
# fwait; fninit; fnstsw ax; cmp al, 0; jne hang; mov dx, 0x501; mov al, 0x21; out dx, al; hang: hlt; jmp hang
_PROBE: Final = bytes.fromhex("9bdbe3 dfe0 3c00 7506 ba0105 b021 ee f4 ebfd")


def accelerator(architecture: str) -> Accelerator:
    """`kvm` when the guest is the host's architecture and KVM really works, else `tcg` (emulation).

    `TWINLOCK_ACCEL=tcg` or `kvm` decides instead. Raises InputError `input-invalid` for another value there.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    if wanted == "tcg":
        return "tcg"
    if wanted == "kvm":
        return "kvm"
    if wanted:
        raise error("input-invalid", f"{ENVIRONMENT} is {wanted!r}; it may be tcg or kvm")
    host = {"x86_64": "x86-64", "aarch64": "arm64"}.get(platform.machine())
    # On ARM the firmware of the lab's board runs at a level that KVM does not give to guests.
    return "kvm" if host == architecture == "x86-64" and kvm_works() else "tcg"


@functools.cache
def kvm_works() -> bool:
    """Runs the probe, once per process: a few tenths of a second where KVM works or does not exist at all."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    return probe("kvm")


def probe(name: Accelerator) -> bool:
    """Whether the boot sector runs to its end under this accelerator."""
    qemu = find_tool("qemu-system-x86_64", "qemu-system-x86")
    with tempfile.TemporaryDirectory(prefix="twinlock-probe-") as folder:
        sector = Path(folder, "probe.img")
        sector.write_bytes(_PROBE.ljust(510, b"\0") + b"\x55\xaa")
        arguments = ["-M", "pc", "-accel", name, "-m", "64", "-nodefaults", "-display", "none", "-no-reboot"]
        arguments += ["-drive", f"file={sector},format=raw,if=ide"]
        arguments += ["-device", "isa-debug-exit,iobase=0x501,iosize=1"]
        try:
            done = subprocess.run(
                [qemu, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_WAIT_S_MAX,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == _EXIT_STATUS
