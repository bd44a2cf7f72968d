"""Installs the agent and its surroundings into a root file system tree that the user's own build made.

Nothing of the build is replaced: files are added, in places of their own, and each is listed in the result.
The tree may become a read-only image; everything that changes on a device is on the data partition:

    /data/identity   machine-id, SSH host keys, the agent's state: outlives every factory reset
    /data/app        the application's data: what the first tier of a factory reset removes
    /data/var, /data/home   bound over /var and /home

`scripts/preinit` sets this up before the system's own init starts; loaders name it as `init=`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from twinlock.core import limits
from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error
from twinlock.core.names import check_device_id, check_name
from twinlock.provision import kernel_check, loader_fat
from twinlock.provision.bytecode import compile_for_device
from twinlock.provision.filesystems import EPOCH_S
from twinlock.provision.layout import FROM_FAT
from twinlock.provision.render import render, shipped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from twinlock.provision.layout import Plan

LIBRARY: Final = "usr/lib/twinlock"
PYTHON_PATH: Final = "usr/lib/twinlock/python"
KERNEL_TABLE: Final = "usr/lib/twinlock/kernel"
ROOT: Final = "etc/twinlock/root.json"
DIRECTOR: Final = "etc/twinlock/director.json"
CA_FILE: Final = "etc/twinlock/ca.pem"
ENROL_RETRY_S: Final = 60
CA_FILE_SIZE_BYTES_MAX: Final = 4 * limits.MIB
UNITS: Final = "usr/lib/systemd/system"
_SAFE_PATH: Final = re.compile(r"/[A-Za-z0-9_./+-]*", re.ASCII)
# A device in recovery serves nobody: it asks soon, and often.
RECOVERY_FIRST_POLL_S: Final = 10
RECOVERY_POLL_S: Final = 120
RECOVERY_JITTER_S: Final = 30
TIMER: Final = "twinlock-agent.timer"
_UNIT: Final = re.compile(r"[\w:.\\@*?\[\]][\w:.\\@*?\[\]-]{0,255}", re.ASCII)
_UNIT_NAMES: Final = (
    "twinlock-agent.service",
    "twinlock-agent.timer",
    "twinlock-trial.service",
    "twinlock-enrol.service",
    "twinlock-grow.service",
    "twinlock-ssh-keys.service",
)
_WANTED_BY: Final = {
    "twinlock-agent.timer": "timers.target",
    "twinlock-trial.service": "multi-user.target",
    "twinlock-enrol.service": "multi-user.target",
    "twinlock-grow.service": "multi-user.target",
    "twinlock-ssh-keys.service": "multi-user.target",
}


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """Who this device talks to, and as what.

    `root` is the repository's root of trust (1.root.json), `director` the director's, without whose word
    the device then takes no release, `ca_file` the certificates to trust for its server; all become part of
    the image. Without `device_id` a device is called after its own key.
    """

    server: str
    product: str
    hardware: str
    tries: int = 3
    poll_s: int = 900
    jitter_s: int = 300
    run_timeout_s: int = 6 * 3600  # one whole run; a large release on a slow link takes hours
    critical_units: tuple[str, ...] = ()  # without which a release does not stay
    trial_s: int = 900  # for a trial's verdict; then the device reboots and the loader counts the try
    root: Path | None = None
    director: Path | None = None
    ca_file: Path | None = None
    device_id: str = ""
    deadline_s: int | None = None  # for the gate of a trial to reach the server; None: the agent's own


@dataclass(frozen=True, slots=True)
class RootfsOptions:
    """What is installed. Paths are as the device sees them."""

    plan: Plan
    agent: AgentOptions
    packages: Path | None = None  # a folder of Python packages to copy (the agent and what it needs)
    python: str = "/usr/bin/python3"
    init: str = "/sbin/init"
    data_mount: str = "/data"
    application_paths: tuple[str, ...] = ("app",)  # below the data mount; removed by the first reset tier
    watchdog_s: int = 30
    disk: str = ""  # the whole disk, such as /dev/mmcblk0; empty: found by PARTUUID
    recovery: bool = False  # the tree is for the recovery partition, not for a slot


@dataclass(slots=True)
class Installed:
    """What was done: the files added (relative to the tree), and what the builder should know."""

    files: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def install(tree: Path, options: RootfsOptions) -> Installed:
    """Adds everything to the tree. Doing it again changes nothing.

    Raises InputError `input-invalid` for options or a tree that cannot work, `input-wrong-type` when it is no
    folder, DeviceError `io-error`, `disk-full`, `permission-denied`.
    """
    _check(tree, options)
    done = Installed()
    with os_errors(f"root file system {tree}"):
        target = _Tree(tree, done)
        _install_scripts(target, options)
        _install_units(target, options)
        _install_configuration(target, options)
        if options.packages is not None:
            _install_packages(target, options.packages)
        _note(target)
    return done


def agent_config(options: RootfsOptions) -> str:
    """The agent's configuration for a device of this plan, as TOML."""
    plan, agent = options.plan, options.agent

    def device(role: str) -> str:
        part = next(part for part in plan.partitions if part.role == role)
        if options.disk:
            between = "p" if options.disk[-1].isdigit() else ""
            return f"{options.disk}{between}{part.number}"
        return f"/dev/disk/by-partuuid/{part.partuuid}"

    record = plan.need("record")
    offsets = [offset - record.start_bytes for offset in plan.record_offsets]
    return "\n".join(
        [
            f"server = {quoted(agent.server)}",
            f"product = {quoted(agent.product)}",
            f"hardware = {quoted(agent.hardware)}",
            f"state = {quoted(options.data_mount + '/identity/agent')}",
            *([f"root = {quoted('/' + ROOT)}"] if agent.root else []),
            *([f"director = {quoted('/' + DIRECTOR)}"] if agent.director else []),
            *([f"device_id = {quoted(agent.device_id)}"] if agent.device_id else []),
            "",
            "[slots.a]",
            f"path = {quoted(device('a'))}",
            "[slots.b]",
            f"path = {quoted(device('b'))}",
            "",
            "[boot]",
            f"control = {quoted(plan.spec.loader.kind)}",
            f"path = {quoted(device('record'))}",
            f"offset_bytes = [{offsets[0]}, {offsets[1]}]",
            'booted = "/run/twinlock/booted.json"',
            f"tries = {agent.tries}",
            "",
            *_loader_config(plan, device("boot")),
            "[reboot]",
            'mode = "command"',
            'command = ["systemctl", "reboot"]',
            "",
            "[health]",
            f"timer = {quoted(TIMER)}",
            f"critical_units = {json.dumps(agent.critical_units)}",
            *([f"deadline_s = {agent.deadline_s}.0"] if agent.deadline_s else []),
            "",
            *(["[network]", f"ca_file = {quoted('/' + CA_FILE)}", ""] if agent.ca_file else []),
        ]
    )


def _check(tree: Path, options: RootfsOptions) -> None:
    if not tree.is_dir():
        raise error("input-wrong-type", f"{tree} is not the folder of a root file system")
    agent = options.agent
    check_name(agent.product, "product")
    check_name(agent.hardware, "hardware")
    if agent.device_id:
        check_device_id(agent.device_id)
    if not agent.server.startswith(("http://", "https://")):
        raise error("input-invalid", f"server {agent.server!r} is not an http or https address")
    paths = [options.python, options.init, options.data_mount, options.disk or "/dev/sda"]
    paths += [f"/{path}" for path in options.application_paths]
    for path in paths:
        if not _SAFE_PATH.fullmatch(path) or ".." in path.split("/") or path == "/":
            raise error("input-invalid", f"path {path!r} cannot be used in the device's scripts")
    numbers = {
        "poll_s": (agent.poll_s, 1, 7 * 86400),
        "jitter_s": (agent.jitter_s, 0, 86400),
        "run_timeout_s": (agent.run_timeout_s, 60, 7 * 86400),
        "trial_s": (agent.trial_s, 30, 86400),
        "tries": (agent.tries, 1, 7),
        "deadline_s": (1 if agent.deadline_s is None else agent.deadline_s, 1, agent.trial_s),
        "watchdog_s": (options.watchdog_s, 0, 3600),
    }
    for name, (value, least, most) in numbers.items():
        if not least <= value <= most:
            raise error("input-invalid", f"{name} is {value}; {least} to {most} is allowed")
    for unit in agent.critical_units:
        if not _UNIT.fullmatch(unit):
            raise error(
                "input-invalid", f"{unit[:80]!r} is not the name of a unit, nor a pattern of such names"
            )
    if "identity" in {path.split("/")[0] for path in options.application_paths}:
        raise error("input-invalid", "the application's data cannot be the device's identity")
    agent_config(options)


def quoted(text: str) -> str:
    """As TOML has it: a JSON string is one."""
    return json.dumps(text)


def _loader_config(plan: Plan, device: str) -> list[str]:
    """[boot.loader], for a loader that cannot hold the boot record itself."""
    loader, boot = plan.spec.loader, plan.need("boot")
    if loader.kind not in FROM_FAT:
        return []
    lines = ["[boot.loader]", f"device = {quoted(device)}", "[boot.loader.arguments]"]
    lines += [f"{slot} = {quoted(text)}" for slot, text in loader_fat.arguments(plan).items()]
    lines.append("[boot.loader.copies]")
    lines += [f"{quoted(path)} = {quoted(name)}" for path, name in loader_fat.copies(loader).items()]
    if loader.kind == "efi":
        lines += [
            "[boot.loader.partition]",
            f"number = {boot.number}",
            f"start_sectors = {boot.start_bytes // plan.spec.sector_size}",
            f"size_sectors = {boot.size_bytes // plan.spec.sector_size}",
            f"partuuid = {quoted(boot.partuuid)}",
        ]
    return [*lines, ""]


class _Tree:
    """The tree as a place to add files to: never through a symbolic link that leaves it."""

    def __init__(self, root: Path, done: Installed) -> None:
        self.root = root.resolve()
        self._done = done

    def place(self, path: str) -> Path:
        """Where `path` (relative) goes, its folders made; `lib` may be a link to `usr/lib`, and stays one."""
        where = self.root / path
        where.parent.mkdir(parents=True, exist_ok=True)
        if not where.parent.resolve().is_relative_to(self.root):
            raise error("input-invalid", f"{path} would lie outside the root file system, behind a link")
        return where

    def write(self, path: str, text: str, *, executable: bool = False) -> None:
        where = self.place(path)
        if where.is_symlink():
            raise error("input-invalid", f"{path} is a symbolic link in the tree; remove it")
        where.write_text(text, "utf-8")
        where.chmod(0o755 if executable else 0o644)
        os.utime(where, (EPOCH_S, EPOCH_S))
        self._done.files.append(path)

    def folder(self, path: str) -> None:
        where = self.place(f"{path}/x").parent
        where.mkdir(exist_ok=True)

    def link(self, path: str, to: str) -> None:
        where = self.place(path)
        if where.is_symlink():
            where.unlink()
        where.symlink_to(to)
        self._done.files.append(path)

    def has(self, path: str) -> bool:
        return os.path.lexists(self.root / path)

    def note(self, text: str) -> None:
        self._done.notes.append(text)


def _values(options: RootfsOptions) -> dict[str, str]:
    agent = options.agent
    return {
        "DATA_MOUNT": options.data_mount,
        "DATA_NUMBER": str(options.plan.need("data").number),
        "INIT": options.init,
        "APPLICATION_PATHS": " ".join(options.application_paths),
        "PYTHON": options.python,
        "PYTHON_PATH": f"/{PYTHON_PATH}",
        "FIRST_POLL_S": str(RECOVERY_FIRST_POLL_S if options.recovery else agent.poll_s),
        "POLL_S": str(min(agent.poll_s, RECOVERY_POLL_S) if options.recovery else agent.poll_s),
        "JITTER_S": str(min(agent.jitter_s, RECOVERY_JITTER_S) if options.recovery else agent.jitter_s),
        "RUN_TIMEOUT_S": str(agent.run_timeout_s),
        "TRIAL_S": str(agent.trial_s),
        "ENROL_RETRY_S": str(ENROL_RETRY_S),
        "WATCHDOG_S": str(options.watchdog_s) if options.watchdog_s else "off",
    }


def _fill(text: str, values: Mapping[str, str]) -> str:
    return render(text, {name: value for name, value in values.items() if f"@{name}@" in text})


def _install_scripts(tree: _Tree, options: RootfsOptions) -> None:
    values = _values(options)
    tree.write(f"{LIBRARY}/preinit", _fill(shipped("scripts", "preinit"), values), executable=True)
    tree.write(f"{LIBRARY}/ssh-keys", _fill(shipped("scripts", "ssh-keys"), values), executable=True)
    tree.write("usr/sbin/twinlock-reset", _fill(shipped("scripts", "reset"), values), executable=True)
    for name in kernel_check.fragment_names():  # for `twinlock-agent doctor`
        tree.write(f"{KERNEL_TABLE}/{name}.config", kernel_check.fragment_text(name))
    tree.write("usr/bin/twinlock-agent", _fill(shipped("scripts", "agent"), values), executable=True)


def _install_units(tree: _Tree, options: RootfsOptions) -> None:
    values = _values(options)
    for name in _UNIT_NAMES:
        if name == "twinlock-grow.service" and not options.plan.spec.data.grow:
            continue
        if name == "twinlock-ssh-keys.service" and not tree.has("usr/sbin/sshd"):
            continue
        tree.write(f"{UNITS}/{name}", _fill(shipped("units", name), values))
        if name in _WANTED_BY:
            tree.link(f"{UNITS}/{_WANTED_BY[name]}.wants/{name}", f"../{name}")
        if name == "twinlock-trial.service":
            tree.link(f"{UNITS}/boot-complete.target.requires/{name}", f"../{name}")
    tree.write("usr/lib/systemd/system.conf.d/twinlock.conf", _fill(shipped("units", "system.conf"), values))
    if tree.has("usr/sbin/sshd"):
        tree.write("etc/ssh/sshd_config.d/twinlock.conf", _fill(shipped("units", "sshd.conf"), values))


def _install_configuration(tree: _Tree, options: RootfsOptions) -> None:
    tree.write("etc/twinlock/agent.toml", agent_config(options))
    agent = options.agent
    if agent.root is not None:
        root = read_bounded(agent.root, limits.METADATA_SIZE_BYTES_MAX["root"], "root of trust")
        tree.write(ROOT, _text(root, agent.root))
    if agent.director is not None:
        root = read_bounded(agent.director, limits.METADATA_SIZE_BYTES_MAX["root"], "director's root")
        tree.write(DIRECTOR, _text(root, agent.director))
    if agent.ca_file is not None:
        certificates = read_bounded(agent.ca_file, CA_FILE_SIZE_BYTES_MAX, "certificates")
        tree.write(CA_FILE, _text(certificates, agent.ca_file))
    for name in ("health/required.d", "health/wanted.d", "hooks"):
        tree.folder(f"etc/twinlock/{name}")
    for name in (options.data_mount.lstrip("/"), "proc", "sys", "dev", "run", "tmp", "var", "home"):
        tree.folder(name)
    if not (tree.root / "etc/machine-id").is_file() or (tree.root / "etc/machine-id").is_symlink():
        # The place that this device's own id is bound to.
        where = tree.place("etc/machine-id")
        where.unlink(missing_ok=True)
    tree.write("etc/machine-id", "")
    if not tree.has("etc/fstab"):
        tree.write(
            "etc/fstab", "# The loader mounts the root, /usr/lib/twinlock/preinit the data partition.\n"
        )


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise error("input-wrong-type", f"{path} is not a text") from problem


def _install_packages(tree: _Tree, packages: Path) -> None:
    """Copies Python packages with their byte code, so that no start on the device compiles anything."""
    if not (packages / "twinlock" / "agent").is_dir():
        raise error("input-invalid", f"{packages} does not hold the twinlock package")
    where = tree.place(f"{PYTHON_PATH}/x").parent
    if where.exists():
        shutil.rmtree(where)
    shutil.copytree(packages, where, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for path in sorted(where.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        path.chmod(mode & ~0o022 | 0o444)
        if path.suffix == ".py":
            os.utime(path, (EPOCH_S, EPOCH_S))
            inside = "/" + path.relative_to(tree.root).as_posix()
            os.utime(compile_for_device(path, inside), (EPOCH_S, EPOCH_S))


def _note(tree: _Tree) -> None:
    """What the builder should know about the tree, in their words."""
    if not any(tree.has(path) for path in ("usr/bin/python3", "usr/bin/python3.11", "usr/local/bin/python3")):
        tree.note("the tree has no python3: the agent needs 3.11 or newer")
    version = f"python3.{sys.version_info.minor}"
    if tree.has("usr/bin/python3") and not tree.has(f"usr/bin/{version}"):
        tree.note(f"the tree's Python is not {version}: build with its version, or the agent starts slowly")
    keys = sorted((tree.root / "etc/ssh").glob("ssh_host_*_key")) if tree.has("etc/ssh") else []
    if keys:
        tree.note(f"{len(keys)} SSH host keys are in the tree: every device would share them; remove them")
    for program, package in (("sbin/e2fsck", "e2fsprogs"), ("sbin/resize2fs", "e2fsprogs")):
        if not tree.has(f"usr/{program}") and not tree.has(program):
            tree.note(f"the tree has no {program}: install {package}, or data is neither mended nor grown")
    server = tree.root / "etc/ssh/sshd_config"
    if tree.has("usr/sbin/sshd") and not (
        server.is_file() and "sshd_config.d" in server.read_text("utf-8", "replace")
    ):
        tree.note("/etc/ssh/sshd_config does not include sshd_config.d: SSH would not find its host keys")
    if not tree.has(ROOT):
        tree.note(f"no root of trust is in the image: put 1.root.json to /{ROOT} or into each device's state")
    if not tree.has("boot/vmlinuz"):
        tree.note("the tree has no /boot/vmlinuz: loader.kernel must name the kernel that it has")
