"""RAUC: a signed bundle with a raw ext4 image, installed by its D-Bus service on a private bus."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Measured, Running, clean_environment, measure, tool
from bench.peers.setup import certificate

NAME = "RAUC"
READY_S_MAX = 20.0

_SYSTEM = """[system]
compatible=bench
bootloader=noop
mountprefix={workdir}/mnt
statusfile={workdir}/status

[keyring]
path={cert}

[slot.rootfs.0]
device={slots[0]}
type=ext4
bootname=system0

[slot.rootfs.1]
device={slots[1]}
type=ext4
bootname=system1
"""

_MANIFEST = """[update]
compatible=bench
version=1.0.0

[bundle]
format=plain

[image.rootfs]
filename=image.ext4
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A signed bundle, the configuration of a system that takes it, and what packing it cost."""

    bundle: Path
    config: Path
    packed: Measured


def version() -> str:
    return f"{NAME} {tool(['rauc', '--version']).split()[-1]}"


def prepare(workdir: Path, image: Path, slots: Sequence[Path]) -> Prepared:
    """Make the signed bundle of `image` and a configuration with two slots, the first of them booted."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "mnt").mkdir(exist_ok=True)
    key, cert = certificate(workdir)
    content = workdir / "content"
    content.mkdir(exist_ok=True)
    (content / "manifest.raucm").write_text(_MANIFEST)
    linked = content / "image.ext4"
    linked.unlink(missing_ok=True)
    try:
        os.link(image, linked)
    except OSError:  # another file system
        shutil.copyfile(image, linked)
    bundle = workdir / "image.raucb"
    bundle.unlink(missing_ok=True)
    # zstd as in the others: mksquashfs's own choice would cost RAUC several times the CPU on both sides.
    argv: list[str | Path] = ["rauc", "bundle", "--mksquashfs-args=-comp zstd -Xcompression-level 3"]
    packed = measure([*argv, "--cert", cert, "--key", key, "--keyring", cert, content, bundle])
    shutil.rmtree(content)
    config = workdir / "system.conf"
    config.write_text(_SYSTEM.format(workdir=workdir, cert=cert, slots=slots))
    return Prepared(bundle, config, packed)


def install(prepared: Prepared) -> Measured:
    """One installation: service (the part with the memory) and client together, from start to end of both."""
    env = clean_environment()
    bus = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address=1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # it complains about a limit that only a system's bus needs
        env=env,
        text=True,
    )
    try:
        assert bus.stdout is not None
        env["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
        env["DBUS_STARTER_BUS_TYPE"] = "session"
        return _install_on(env, prepared)
    finally:
        bus.terminate()
        bus.communicate()


def _install_on(env: dict[str, str], prepared: Prepared) -> Measured:
    argv: list[str | Path] = ["rauc", "--conf", prepared.config, "--override-boot-slot=system0", "service"]
    service = Running(argv, env)
    try:
        _wait_for_service(env, service)
        client = measure(["rauc", "install", prepared.bundle], env=env)
    finally:
        service.stop()
        served = service.finish(expect=(0, -15))
    return served + client


def _wait_for_service(env: dict[str, str], service: Running) -> None:
    """Return once the service has its name on the bus."""
    argv = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]
    argv += ["org.freedesktop.DBus.NameHasOwner", "string:de.pengutronix.rauc"]
    until = time.monotonic() + READY_S_MAX
    while time.monotonic() < until:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if "boolean true" in done.stdout:
            return
        if service.process.poll() is not None:
            raise BenchError("RAUC's service ended before it was ready")
        time.sleep(0.05)
    raise BenchError(f"RAUC's service was not ready within {READY_S_MAX:.0f} s")
