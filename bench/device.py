"""The agent on whole virtual devices: memory in the guest beside SWUpdate and RAUC, boot, update, downtime.

Each board boots its real loader, Debian's kernel and systemd. Ours is a whole update from a real server over
https: poll, metadata, parts by range, the slot read back, reboot, health gate, commit. The peers, in the same
guest and the same run, install the same image from a local file to disks of their own. Peaks of resident
memory are the guest kernel's: VmHWM of our processes, rusage for the peers; RAUC's is its service's.
"""

from __future__ import annotations

import gzip
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Context, Row, tool
from bench.peers import rauc, swupdate
from twinlock.cli.api import Api
from twinlock.core.limits import MIB
from twinlock.lab.qemu import build, guests, stage, system
from twinlock.lab.qemu.machine import ARCHITECTURES, Architecture
from twinlock.lab.qemu.shell import Shell
from twinlock.provision import layout

TITLE = "device: the agent in the guest, beside SWUpdate and RAUC in the same guest"
CHECK_MIB_MAX = 40.0
INSTALL_MIB_MAX = 32.0
FLAT_RATIO_MAX = 1.10
SLOT_MIB = 256  # the lab's system and the peers
LARGE_SLOT_MIB = 512
LARGE_COPIES = 3  # of Python's library: as much data again as the system has
PEERS = ("rauc", "rauc-service", "dbus", "swupdate")
PLACE = "/run/peers"
SLOTS = (Path("/dev/nvme2n1"), Path("/dev/nvme3n1"))
WRAPPER = "usr/lib/lab-measure"

# Runs in the guest: installs with one of the peers and prints the peak of its resident memory in KiB.
_WRAPPER = f"""\
import os, subprocess, sys, time

def peak(process):
    _, status, usage = os.wait4(process.pid, 0)
    return status, usage.ru_maxrss

def swupdate():
    argv = ["swupdate", "-l", "1", "-H", "bench:1.0", "-k", "{PLACE}/swupdate/cert.pem"]
    status, kib = peak(subprocess.Popen([*argv, "-i", "{PLACE}/swupdate/image.swu"]))
    return status, kib

def rauc():
    bus = subprocess.Popen(
        ["dbus-daemon", "--session", "--nofork", "--print-address=1"], stdout=subprocess.PIPE, text=True
    )
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
    os.environ["DBUS_STARTER_BUS_TYPE"] = "session"
    argv = ["rauc", "--conf", "{PLACE}/rauc/system.conf", "--override-boot-slot=system0", "service"]
    service = subprocess.Popen(argv)
    ask = ["dbus-send", "--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]
    ask += ["org.freedesktop.DBus.NameHasOwner", "string:de.pengutronix.rauc"]
    until = time.monotonic() + 60
    while b"boolean true" not in subprocess.run(ask, capture_output=True).stdout:
        if time.monotonic() > until:
            sys.exit("RAUC's service does not start")
        time.sleep(0.1)
    done = subprocess.run(["rauc", "install", "{PLACE}/rauc/image.raucb"])
    service.terminate()
    _, kib = peak(service)
    bus.terminate()
    return done.returncode, kib

status, kib = {{"swupdate": swupdate, "rauc": rauc}}[sys.argv[1]]()
print("ended", status, "peak", kib)
"""


@dataclass(frozen=True, slots=True)
class Found:
    """What one device gave; memory in MiB."""

    boot_s: float
    done: stage.Updated
    install_mib: float
    check_mib: float
    peers: dict[str, float]


def tree_of(architecture: Architecture, folder: Path, copies: int) -> Path:
    """The lab's system with the peers in it, and as much more of its own files as `copies` says."""
    tree = system.system_tree(architecture, folder / "tree", "none", PEERS)
    (tree / WRAPPER).write_text(_WRAPPER)
    for number in range(copies):
        tool(["cp", "-a", tree / "usr/lib/python3.11", tree / f"usr/lib/more{number}"])
    return tree


def bundles(builder: build.Builder, folder: Path, out: Path) -> None:
    """Fills the disk `out` with both peers' bundles of our image, as they will find them in the guest."""
    image = builder.image("peers")
    content = folder / "bundles"
    content.mkdir()
    swu = swupdate.prepare(folder / "swupdate", image, SLOTS[0])
    bundle = rauc.prepare(folder / "rauc", image, SLOTS)
    image.unlink()
    for name in ("swupdate", "rauc"):
        (content / name).mkdir()
    tool(["cp", swu.bundle, content / "swupdate/image.swu"])
    tool(["cp", swu.cert, content / "swupdate/cert.pem"])
    tool(["cp", bundle.bundle, content / "rauc/image.raucb"])
    tool(["cp", bundle.config, content / "rauc/system.conf"])
    text = bundle.config.read_text().replace(str(folder / "rauc"), f"{PLACE}/rauc")
    text = text.replace(f"mountprefix={PLACE}/rauc/mnt", "mountprefix=/run/rauc-mount")
    text = text.replace(f"statusfile={PLACE}/rauc/status", "statusfile=/run/rauc-status")
    (content / "rauc/system.conf").write_text(text)
    found = re.search(r"^path=(\S+)$", text, re.MULTILINE)
    assert found is not None, "the configuration names its certificate"
    tool(["cp", folder / "rauc" / Path(found[1]).name, content / "rauc"])
    with out.open("wb") as file:
        file.truncate(out_size(content))
    tool(["mke2fs", "-q", "-t", "ext4", "-d", content, out])


def out_size(content: Path) -> int:
    """Room for the files in `content`."""
    used = sum(path.stat().st_size for path in content.rglob("*") if path.is_file())
    return (used // MIB + 32) * MIB


def memory(shell: Shell) -> tuple[float, float]:
    """(install, check) in MiB: what the agent's own runs said in the guest's journal."""
    said = shell.run("journalctl -u twinlock-agent -u twinlock-trial --no-pager -o cat | grep memory")
    found = re.findall(r"at most ([\d.]+) MiB, its check ([\d.]+)", said)
    if not found:
        raise BenchError(f"the agent did not say how much memory it needed: {said!r}")
    return max(float(run) for run, _ in found), max(float(check) for _, check in found)


def swupdate_version(architecture: Architecture) -> str:
    """From the package's list of changes: `swupdate --version` of Debian leaves the number out."""
    name = "./usr/share/doc/swupdate/changelog.Debian.gz"
    packages = [*system.PACKAGES, guests.KERNELS[architecture], *PEERS]
    with tarfile.open(guests.debian(architecture, packages)) as archive:
        file = archive.extractfile(name)
        assert file is not None, f"{name} is a file"
        text = gzip.decompress(file.read()).decode("utf-8", "replace")
    found = re.match(r"swupdate \(([0-9.]+)", text)
    if found is None:
        raise BenchError(f"{name} begins with {text[:80]!r}, not with a version")
    return found[1]


def peer(shell: Shell, name: str) -> float:
    """Peak memory in MiB of one peer's install in the guest."""
    said = shell.run(f"python3 /{WRAPPER} {name}")
    found = re.search(r"ended (\d+) peak (\d+)", said)
    if found is None or found[1] != "0":
        raise BenchError(f"{name} did not install in the guest:\n{said}")
    return int(found[2]) / 1024


def one(ctx: Context, architecture: Architecture, slot_mib: int, copies: int) -> Found:
    """One device's first boot, one update, and the peers' installs."""
    folder = ctx.workdir / f"{architecture}-{slot_mib}"
    folder.mkdir()
    disks = [folder / name for name in ("bundles.img", "slot0.img", "slot1.img")]
    for path in disks:
        with path.open("wb") as file:
            file.truncate(slot_mib * MIB)
    spec = layout.parse_spec(build.description(architecture, slot_mib))
    tree = tree_of(architecture, folder, copies)
    settings = build.Settings("bench-device")
    with stage.opened(
        architecture, folder / "lab", Api, settings, spec=spec, tree=tree, more=disks, note=ctx.note
    ) as played:
        bundles(played.builder, folder, disks[0])
        boot_s = played.begin()
        played.release("1.1")
        done = played.update("1.1")
        if done.state != "succeeded":
            raise BenchError(f"{architecture}: the update ended as {done.state}: {done.code} {done.detail}")
        machine = played.device.machine
        machine.wait_for(rf"{guests.MARK} system=1\.1 slot=b end")
        shell = Shell(machine)
        install_mib, check_mib = memory(shell)
        shell.run(f"mkdir -p {PLACE} /run/rauc-mount && mount -o ro /dev/nvme1n1 {PLACE} && modprobe loop")
        versions = {
            "swupdate": f"SWUpdate {swupdate_version(architecture)}",
            "rauc": f"RAUC {shell.run('rauc --version').split()[-1]}",
        }
        peers = {versions[name]: peer(shell, name) for name in versions}
    return Found(boot_s, done, install_mib, check_mib, peers)


def rows_of(name: str, found: Found) -> list[Row]:
    """The rows of one device."""
    rows = [
        Row(f"{name}: install, peak memory", "MiB", found.install_mib, bound=INSTALL_MIB_MAX),
        Row(f"{name}: metadata check, peak memory", "MiB", found.check_mib, bound=CHECK_MIB_MAX),
    ]
    for other, value in found.peers.items():
        rows.append(Row(f"{name}: install, peak memory", "MiB", found.install_mib, other, value))
    return [
        *rows,
        Row(f"{name}: power on to the service's first answer, first boot", "s", found.boot_s),
        Row(f"{name}: rollout to outcome", "s", found.done.seconds),
        Row(f"{name}: the same, the emulator's processor", "s", found.done.cpu_s),
        Row(f"{name}: service away for the update", "s", found.done.away_s),
        Row(f"{name}: bytes fetched", "bytes", float(found.done.bytes_fetched)),
    ]


def run(ctx: Context) -> list[Row]:
    for command in ("rauc", "cpio", "openssl", "zstd"):
        if subprocess.run(["which", command], capture_output=True).returncode:
            raise BenchError(f"{command} is missing: run it with `make bench NAME=device`")
    rows: list[Row] = []
    usual: dict[str, Found] = {}
    for architecture in ARCHITECTURES:
        usual[architecture] = one(ctx, architecture, SLOT_MIB, 0)
        rows += rows_of(f"{architecture}, {SLOT_MIB} MiB slot", usual[architecture])
    large = one(ctx, "x86-64", LARGE_SLOT_MIB, LARGE_COPIES)
    rows += rows_of(f"x86-64, {LARGE_SLOT_MIB} MiB slot", large)
    ratio = large.install_mib / usual["x86-64"].install_mib
    what = f"x86-64: install, peak memory, {LARGE_SLOT_MIB} MiB / {SLOT_MIB} MiB"
    rows.append(Row(what, "ratio", ratio, bound=FLAT_RATIO_MAX))
    return rows
