"""A small but whole Debian system for virtual devices: systemd, Python, the agent's surroundings.

mmdebstrap unpacks the packages without running their scripts; what those would have set up and a device
needs (users, module index, a default target) is set up here. The result is kept in the cache as a tar
archive. Whoever takes it (`system_tree`) does what a user's build does: add the application, then call
`provision.rootfs`.

On its console such a system says `TWINLOCK-GUEST system=<name> slot=<slot> end` when it has started, and then
runs commands typed there as root.
"""

from __future__ import annotations

import json
import py_compile
import shutil
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import twinlock
from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.lab.qemu.cache import cached
from twinlock.lab.qemu.guests import CONSOLES, KERNELS, MARK, debian
from twinlock.provision import filesystems
from twinlock.provision.bytecode import compile_for_device
from twinlock.provision.tools import find_tool, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.lab.qemu.machine import Architecture

PACKAGES: Final = (
    *("base-files", "base-passwd", "coreutils", "dash", "findutils", "grep", "sed", "util-linux", "mount"),
    *("systemd", "systemd-sysv", "udev", "kmod", "e2fsprogs", "python3", "openssh-server", "libc-bin"),
)
PYTHON_VERSION: Final = "3.11"  # of Debian 12
_PACKAGE_PARTS: Final = ("core", "agent", "provision")
_DEPENDENCIES: Final = ("msgspec", "cryptography", "tuf", "backports.zstd", "bsdiff4")
_PLATFORMS: Final = {"arm64": "aarch64-unknown-linux-gnu", "x86-64": "x86_64-unknown-linux-gnu"}
# Nothing on a device without people reads these; they would double the image.
_REMOVED: Final = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian"),
    *("usr/share/initramfs-tools", "usr/share/perl5", "usr/share/zsh", "usr/share/bash-completion"),
    *(
        "usr/lib/python3.11/test",
        "usr/lib/udev/hwdb.d",
        "usr/lib/udev/hwdb.bin",
        "var/cache",
        "usr/lib/klibc",
        "usr/bin/perl",
        "usr/lib/systemd/system-generators",
        "usr/lib/valgrind",
    ),
    # The devices have the server of SSH, not its clients, and run programs, not their tests and manuals.
    *("usr/bin/ssh", "usr/bin/ssh-add", "usr/bin/ssh-agent", "usr/bin/ssh-keyscan", "usr/bin/scp"),
    *("usr/bin/sftp", "usr/lib/openssh", "etc/ssh/moduli", "usr/bin/localedef"),
    *("usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/unittest", "usr/lib/python3.11/xmlrpc"),
    *("usr/lib/python3.11/wsgiref", "usr/lib/python3.11/turtle.py", "usr/lib/python3.11/venv"),
)
_REMOVED_PATTERNS: Final = (
    "usr/bin/dpkg*",
    "usr/lib/linux-image-*",
    "usr/lib/*/gconv",
    "usr/lib/*/perl-base",
    "usr/bin/perl5*",
)
_MODULES: Final = (
    *("virtio", "virtio_ring", "virtio_pci", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_net"),
    *(
        "failover",
        "net_failover",
        "watchdog",
        "softdog",
        "overlay",
        "squashfs",
        "loop",
        "ramoops",
        "reed_solomon",
        "virtio-rng",
    ),
)
# Units that need what this system does not have, or that cost seconds of an emulated processor for nothing.
_MASKED: Final = (
    *("systemd-logind.service", "systemd-firstboot.service", "systemd-sysusers.service", "ldconfig.service"),
    *("systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "systemd-update-done.service"),
    *("systemd-networkd-wait-online.service", "getty.target", "apt-daily.timer", "apt-daily-upgrade.timer"),
    *("e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer", "dpkg-db-backup.timer", "ssh.service"),
    *("systemd-update-utmp.service", "systemd-update-utmp-runlevel.service", "remote-fs.target"),
    *("dev-mqueue.mount", "dev-hugepages.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount"),
    *("modprobe@.service", "systemd-user-sessions.service", "systemd-random-seed.service"),
    *("systemd-tmpfiles-clean.timer", "systemd-machine-id-commit.service", "systemd-repart.service"),
    *("systemd-ask-password-console.path", "systemd-ask-password-wall.path", "systemd-pcrphase.service"),
    *("proc-sys-fs-binfmt_misc.automount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount"),
)
_USERS: Final = (
    "messagebus:x:100:100::/nonexistent:/usr/sbin/nologin",
    "systemd-network:x:998:998::/:/usr/sbin/nologin",
    "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin",
)
_GROUPS: Final = (
    *("messagebus:x:100:", "systemd-network:x:998:", "systemd-journal:x:999:", "kvm:x:101:", "render:x:103:"),
    *("input:x:104:", "sgx:x:105:", "_ssh:x:106:"),
)
_NETWORK: Final = (
    "[Match]\nName=e*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\nLinkLocalAddressing=no\n"
)
_SHELL_UNIT: Final = """\
[Unit]
Description=Root shell on the console of a virtual device
After=multi-user.target
[Service]
ExecStart=/usr/lib/lab-shell
StandardInput=tty-force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/@CONSOLE@
Environment=HOME=/root PS1= TERM=dumb
Restart=always
# A shell on a terminal ignores SIGTERM, and a reboot would wait for it.
KillSignal=SIGKILL
[Install]
WantedBy=default.target
"""
# softdog is the only watchdog that these boards and Debian's cloud kernels have in common; Debian's own
# configuration keeps every watchdog from being loaded unless somebody asks for it.
_WATCHDOG_UNIT: Final = """\
[Unit]
Description=The watchdog of a virtual device
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/sbin/modprobe softdog
[Install]
WantedBy=sysinit.target
"""
# Of some hundred devices only these matter here, and each costs an emulated processor its time.
_UDEV_TRIGGER: Final = """\
[Service]
ExecStart=
ExecStart=/usr/bin/udevadm trigger --action=add --subsystem-match=block --subsystem-match=net \
  --subsystem-match=pci --subsystem-match=virtio --subsystem-match=watchdog
"""
_SHELL: Final = f"""\
#!/bin/sh
echo "machine-id: $(cat /etc/machine-id)"
echo "{MARK} system=$(cat /etc/system) slot=$(cat /run/twinlock/slot) end"
exec /bin/sh
"""


def base(architecture: Architecture, more: Sequence[str] = ()) -> Path:
    """The prepared system, with `more` packages, as a tar archive in the cache; raises like `debian`."""
    packages = [*PACKAGES, KERNELS[architecture], *more]
    settings = [_REMOVED, _REMOVED_PATTERNS, _MODULES, _MASKED, _USERS, _GROUPS, _NETWORK]
    settings += [_WATCHDOG_UNIT, _UDEV_TRIGGER, _SHELL_UNIT, _SHELL]
    recipe = json.dumps(["system", 15, architecture, packages, settings])

    def make(out: Path) -> None:
        with TemporaryDirectory(prefix="twinlock-system-", dir=out.parent) as folder, os_errors(str(out)):
            tree = Path(folder)
            filesystems.extract(debian(architecture, packages), tree)
            _prepare(tree, architecture)
            run(
                ["tar", "-C", folder, "--sort=name", "--owner=0", "--group=0", "-cf", str(out), "."],
                package="tar",
            )

    return cached(f"system-{architecture}", recipe, ".tar", make)


def _prepare(tree: Path, architecture: Architecture) -> None:
    found = [path for pattern in _REMOVED_PATTERNS for path in tree.glob(pattern)]
    for path in [*(tree / name for name in _REMOVED), *found]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    _keep_modules(tree)
    compile_library(tree)
    (version,) = (path.name for path in (tree / "usr/lib/modules").iterdir())
    run(["depmod", "-b", str(tree), version], package="kmod")
    (tree / "boot" / f"vmlinuz-{version}").rename(tree / "boot/vmlinuz")
    for path in (tree / "boot").iterdir():
        if path.name != "vmlinuz":
            path.unlink()
    master = tree / "usr/share/base-passwd"
    etc = tree / "etc"
    (etc / "passwd").write_text((master / "passwd.master").read_text() + "\n".join(_USERS) + "\n", "ascii")
    (etc / "group").write_text((master / "group.master").read_text() + "\n".join(_GROUPS) + "\n", "ascii")
    (etc / "hostname").write_text("device\n", "ascii")
    (etc / "fstab").write_text("", "ascii")
    (etc / "resolv.conf").unlink(missing_ok=True)
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n", "ascii")
    (etc / "systemd/network").mkdir(parents=True, exist_ok=True)
    (etc / "systemd/network/lab.network").write_text(_NETWORK, "ascii")
    (etc / "ssh").mkdir(exist_ok=True)
    (etc / "ssh/sshd_config").write_text("Include /etc/ssh/sshd_config.d/*.conf\n", "ascii")
    units = etc / "systemd/system"
    units.mkdir(parents=True, exist_ok=True)
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    text = _SHELL_UNIT.replace("@CONSOLE@", CONSOLES[architecture])
    (units / "lab-shell.service").write_text(text, "ascii")
    shell = tree / "usr/lib/lab-shell"
    shell.write_text(_SHELL, "ascii")
    shell.chmod(0o755)
    (units / "systemd-udev-trigger.service.d").mkdir(exist_ok=True)
    (units / "systemd-udev-trigger.service.d/lab.conf").write_text(_UDEV_TRIGGER, "ascii")
    (units / "lab-watchdog.service").write_text(_WATCHDOG_UNIT, "ascii")
    for name, target in (
        ("lab-shell.service", "default.target"),
        ("lab-watchdog.service", "sysinit.target"),
        ("systemd-networkd.service", "multi-user.target"),
    ):
        wants = units / f"{target}.wants"
        wants.mkdir(exist_ok=True)
        source = f"../{name}" if name.startswith("lab") else f"/usr/lib/systemd/system/{name}"
        (wants / name).unlink(missing_ok=True)
        (wants / name).symlink_to(source)
    for name in ("wtmp", "btmp", "lastlog"):
        (tree / "var/log" / name).unlink(missing_ok=True)


def _keep_modules(tree: Path) -> None:
    names = {f"{name}.ko" for name in _MODULES}
    for path in (tree / "usr/lib/modules").rglob("*.ko"):
        if path.name not in names:
            path.unlink()


def compile_library(tree: Path) -> None:
    """Byte code for Python's library, as Debian's packages would have made it on the device."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON_VERSION:
        return  # byte code of another version is of no use there; the guest starts slower
    for path in sorted((tree / f"usr/lib/python{PYTHON_VERSION}").rglob("*.py")):
        with suppress(py_compile.PyCompileError):  # the library has files that no Python 3 compiles
            compile_for_device(path, "/" + path.relative_to(tree).as_posix())


def python_packages(architecture: Architecture) -> Path:
    """A folder with the agent's compiled and pure dependencies for a guest, in the cache.

    They are the versions that run here, fetched by uv for the guest's architecture and Python.
    Raises DeviceError `package-missing` without uv, `io-error` when they cannot be fetched.
    """
    wanted = [f"{name}=={metadata.version(name)}" for name in _DEPENDENCIES]
    recipe = json.dumps(["packages", 1, architecture, PYTHON_VERSION, wanted])

    def make(out: Path) -> None:
        uv = find_tool("uv", "uv (pip install uv)")
        arguments = [uv, "pip", "install", "--quiet", "--target", str(out), "--only-binary", ":all:"]
        arguments += ["--python-platform", _PLATFORMS[architecture], "--python-version", PYTHON_VERSION]
        run([*arguments, *wanted], package="uv", keep_environment=True)

    return cached(f"packages-{architecture}", recipe, ".packages", make)


def agent_packages(architecture: Architecture, folder: Path) -> Path:
    """Fills `folder` with the agent as it is here, and its dependencies for the guest."""
    if architecture not in _PLATFORMS:
        raise error("input-invalid", f"architecture {architecture!r} is not known: {sorted(_PLATFORMS)}")
    own = Path(twinlock.__file__).parent
    with os_errors(f"packages in {folder}"):
        shutil.copytree(python_packages(architecture), folder, ignore=shutil.ignore_patterns("bin"))
        (folder / "twinlock").mkdir()
        for path in own.glob("*.py"):
            shutil.copyfile(path, folder / "twinlock" / path.name)
        for part in _PACKAGE_PARTS:
            shutil.copytree(
                own / part, folder / "twinlock" / part, ignore=shutil.ignore_patterns("__pycache__")
            )
    return folder


def system_tree(architecture: Architecture, folder: Path, system: str, more: Sequence[str] = ()) -> Path:
    """Unpacks the prepared system into `folder` under the name `system`: what a user's build leaves."""
    with os_errors(f"tree {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        filesystems.extract(base(architecture, more), folder)
        (folder / "etc/system").write_text(f"{system}\n", "ascii")
    return folder
