"""The file trees of the pairs: a Debian root before and after security updates, and with an application."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from bench.pairs import mirrors
from bench.pairs.tools import EPOCH, MissingError, need, run

PACKAGES = (
    "systemd,udev,dbus,openssh-server,python3,openssl,curl,busybox,ca-certificates,iproute2,nftables,kmod,"
    "e2fsprogs,chrony,wpasupplicant,zstd,rsync"
)
EXCLUDED = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
KERNEL = "linux-image-cloud-amd64"
# About 5 MB: a native proxy and a Python service with native modules, as gateways and appliances ship them.
APPLICATION = ("haproxy", "python3-aiohttp")
_UNPACK = (
    'set -e; cd "$1/tmp"; '
    'for name in {names}; do chroot "$1" sh -c "cd /tmp && apt-get download -q $name"; done; '
    'mkdir -p "$1{into}"; for file in *.deb; do dpkg-deb --fsys-tarfile "$file" | '
    'tar -x --keep-directory-symlink -C "$1{into}"; done; rm -f *.deb'
)


def _kernel_hook() -> str:
    find = (
        f'$(chroot "$1" apt-cache depends {KERNEL} | sed -n "s/.*Depends: \\(linux-image-[^ ]*\\).*/\\1/p" '
        "| head -n 1)"
    )
    return _UNPACK.format(names=find, into="")


def _application_hook() -> str:
    return _UNPACK.format(names=" ".join(APPLICATION), into="/opt/app")


def build_root(folder: Path, suites: tuple[str, ...]) -> None:
    """Makes a Debian root in `folder`, which must not exist, from the named suites, with a kernel's files."""
    need("mmdebstrap")
    if os.geteuid() != 0:
        raise MissingError("building the pairs' file trees keeps file owners, so it runs as root")
    lines = mirrors.sources()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    argv: list[str | Path] = ["mmdebstrap", "--variant=minbase", "--mode=root", f"--include={PACKAGES}"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    argv += [f"--customize-hook={_kernel_hook()}"]
    argv += ["--format=directory", mirrors.RELEASE, partial]
    run([*argv, *(lines[suite] for suite in suites)])
    _clean(partial)
    _clamp(partial)
    partial.rename(folder)


def build_application(folder: Path, root: Path, suites: tuple[str, ...]) -> None:
    """A copy of the tree `root` with the application of the named suites unpacked below /opt/app."""
    lines = mirrors.sources()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    run(["cp", "-a", root, partial])
    packages = folder.with_name(folder.name + ".packages")
    shutil.rmtree(packages, ignore_errors=True)
    # An empty root whose only purpose is an apt with the wanted suites.
    argv: list[str | Path] = ["mmdebstrap", "--variant=apt", "--mode=root"]
    argv += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    argv += [f"--customize-hook={_application_hook()}", "--format=directory", mirrors.RELEASE, packages]
    run([*argv, *(lines[suite] for suite in suites)])
    run(["cp", "-a", packages / "opt/app", partial / "opt/app"])
    for pattern in EXCLUDED:
        shutil.rmtree(partial / "opt/app" / pattern.strip("/*"), ignore_errors=True)
    shutil.rmtree(packages)
    _clamp(partial)
    partial.rename(folder)


def _clean(root: Path) -> None:
    """Removes what differs between two installations of the same packages."""
    for pattern in ("etc/ssh/ssh_host_*", "var/log/**/*", "var/cache/**/*", "var/lib/apt/lists/**/*"):
        for path in root.glob(pattern):
            if not path.is_dir() or path.is_symlink():
                path.unlink()
    for name in ("etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf"):
        (root / name).unlink(missing_ok=True)
    shutil.rmtree(root / "dev")
    (root / "dev").mkdir()


def _clamp(root: Path) -> None:
    """No time stamp after `EPOCH`, on files, folders and links alike."""
    for folder, names, files in os.walk(root):
        for name in (*names, *files, "."):
            path = os.path.join(folder, name)  # noqa: PTH118
            known = os.lstat(path)
            if known.st_mtime > EPOCH or stat.S_ISDIR(known.st_mode):
                os.utime(path, (EPOCH, EPOCH), follow_symlinks=False)
