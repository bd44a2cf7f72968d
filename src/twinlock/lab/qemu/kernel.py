"""A kernel for the virtual x86-64 board, made from Debian's kernel source and every fragment that ships.

It proves the fragments (`provision/kernel/*.config`): from a configuration with everything off, they and what
the board needs must come out of Kconfig as they went in, and the kernel must boot. Kconfig drops an option
whose dependency is off without a word; here that is an error.

The source comes by apt, which checks it against Debian's signed lists; nothing is installed. The kernel and
its configuration are kept in the cache by their recipe. x86-64 only: other boards need a cross compiler.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec

from twinlock.core.durable import os_errors, read_bounded
from twinlock.core.errors import error
from twinlock.core.limits import KIB
from twinlock.lab.qemu.cache import cache_folder, cached
from twinlock.provision import kernel_check
from twinlock.provision.tools import find_tool, run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twinlock.core.kernel_options import Finding, Option

PACKAGE: Final = "linux-source-6.1"  # of Debian 12
BOARD: Final = "board"
# What the virtual board and a shell on its console need beside the fragments. The same form as theirs.
BOARD_FRAGMENT: Final = """\
# The board: PCI with NVMe and a network card, found by ACPI, one serial port.
CONFIG_64BIT=y
CONFIG_SMP=y
CONFIG_BLOCK=y
CONFIG_ACPI=y
CONFIG_PCI=y
CONFIG_PCI_MSI=y
CONFIG_PCIEPORTBUS=y
CONFIG_HPET_TIMER=y
CONFIG_RTC_CLASS=y
CONFIG_RTC_DRV_CMOS=y
CONFIG_BLK_DEV_NVME=y
CONFIG_TTY=y
CONFIG_SERIAL_8250=y
CONFIG_SERIAL_8250_CONSOLE=y
CONFIG_NETDEVICES=y
CONFIG_NET_CORE=y
CONFIG_VIRTIO_MENU=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_NET=y
CONFIG_PACKET=y
CONFIG_I6300ESB_WDT=y

# Programs, scripts, and words on the console.
CONFIG_PRINTK=y
CONFIG_BINFMT_ELF=y
CONFIG_BINFMT_SCRIPT=y
CONFIG_MULTIUSER=y
CONFIG_FUTEX=y

# Tests let it panic.
CONFIG_MAGIC_SYSRQ=y

# Slots boot without an initrd, and the kernel has no modules: it is one file, as small as it can be.
CONFIG_DEBUG_INFO_NONE=y
# CONFIG_BLK_DEV_INITRD is not set
# CONFIG_MODULES is not set
# CONFIG_WIRELESS is not set
# CONFIG_ETHERNET is not set
"""
# Kconfig offers them for no x86-64 kernel: the flat device tree is read early on other architectures only.
NOT_ON_X86: Final = frozenset({"OF_RESERVED_MEM"})
# (program or header, Debian package): `make` itself would name only the first one, by a line of shell.
_NEEDED: Final = (
    *(("apt-get", "apt"), ("dpkg-deb", "dpkg"), ("tar", "tar"), ("xz", "xz-utils"), ("nice", "coreutils")),
    *(("make", "make"), ("gcc", "gcc"), ("flex", "flex"), ("bison", "bison"), ("bc", "bc")),
    *(("/usr/include/stdlib.h", "libc6-dev"), ("/usr/include/libelf.h", "libelf-dev")),
)
# A third of the source that neither Kconfig nor this build reads.
_LEFT_OUT: Final = ("Documentation/*/*", "drivers/gpu/drm/amd/include/*", "tools/testing/*")
_OFFER: Final = re.compile(r"^'[^']+' (\S+\.deb) [0-9]+ (\w+:[0-9a-f]+)\s*$", re.MULTILINE | re.ASCII)
_VERSION: Final = re.compile(r"[^_/]+_([^_/]+)_[a-z0-9]+\.deb", re.ASCII)
# The same bytes whoever builds it, and whenever.
_ENVIRONMENT: Final = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "twinlock",
    "KBUILD_BUILD_HOST": "lab",
}
_BUILD_WAIT_S_MAX: Final = 7200.0
_BUILT_SIZE_BYTES_MAX: Final = 4 * KIB


@dataclass(frozen=True, slots=True)
class Source:
    """What apt offers: Debian's version of the package and the hash that its signed list has for it."""

    version: str
    hash: str


class Built(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a kernel in the cache was made. `cpu_s` are the compiler's processor seconds, user and system."""

    source: str
    compiler: str
    cpu_s: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class OwnKernel:
    """A kernel in the cache: its image (bzImage), its configuration, and how it was made."""

    image: Path
    config: Path
    built: Built


def fragments() -> dict[str, str]:
    """All shipped fragments by name, and the board's before them."""
    shipped = {name: kernel_check.fragment_text(name) for name in kernel_check.fragment_names()}
    return {BOARD: BOARD_FRAGMENT} | shipped


def merged(texts: dict[str, str]) -> list[Option]:
    """The options of all of them.

    Raises DeviceError `kernel-options` when two want different values for one option: merged, the later one
    would win and say nothing.
    """
    wanted: dict[str, Option] = {}
    options = [option for name, text in texts.items() for option in kernel_check.parse_fragment(text, name)]
    for option in options:
        first = wanted.setdefault(option.name, option)
        if first.value != option.value:
            raise error(
                "kernel-options",
                f"fragment {first.fragment} wants CONFIG_{option.name}={first.value}, "
                f"fragment {option.fragment} wants {option.value}",
            )
    return options


def unmet(config: bytes, options: Iterable[Option]) -> list[Finding]:
    """What Kconfig did not take over, the merely wanted too. Raises what `kernel_check.parse_config` does."""
    findings = kernel_check.check(kernel_check.parse_config(config), options)
    return [finding for finding in findings if finding.option.name not in NOT_ON_X86]


def require(config: bytes, options: Iterable[Option]) -> None:
    """Raises DeviceError `kernel-options`, with every option that is not as the fragments say."""
    missing = unmet(config, options)
    if missing:
        listed = "\n".join(f"  {finding.option.fragment}: {finding.show()}" for finding in missing)
        raise error(
            "kernel-options",
            f"Kconfig did not take over {len(missing)} options of the fragments:\n{listed}",
            hint="a dependency is off: name it in the same fragment, with its reason",
        )


def recipe(source: Source, compiler: str) -> str:
    """What the kernel depends on, for its name in the cache: a change of any of it makes another one."""
    return json.dumps(["kernel", 1, source.version, source.hash, compiler, fragments()], sort_keys=True)


def offered(told: str) -> Source:
    """The package in what `apt-get download --print-uris` says. Raises DeviceError `package-missing`."""
    match = _OFFER.search(told)
    version = _VERSION.fullmatch(match[1]) if match else None
    if match is None or version is None:
        raise error(
            "package-missing",
            f"apt does not offer {PACKAGE}",
            hint="the machine needs Debian 12's lists of packages (apt-get update)",
        )
    return Source(version[1].replace("%3a", ":"), match[2])


def own_kernel() -> OwnKernel:
    """The kernel of the fragments: from the cache, else built now (minutes; 2 GiB for as long).

    Raises InputError `input-invalid` on another host than x86-64, DeviceError `package-missing` when a
    program or the source is missing, `kernel-options` when Kconfig drops what a fragment asks for,
    `io-error` when the compiler or the download fails.
    """
    need_host(platform.machine())
    source = offered(_apt(["--print-uris", PACKAGE]))
    compiler = run(["gcc", "--version"], package="gcc").partition("\n")[0]

    def make(out: Path) -> None:
        with TemporaryDirectory(prefix="kernel-", dir=cache_folder()) as folder:
            _build(Path(folder), out, source, compiler)

    entry = cached("kernel-x86-64", recipe(source, compiler), ".d", make)
    data = read_bounded(entry / "built.json", _BUILT_SIZE_BYTES_MAX, "kernel in the cache")
    return OwnKernel(entry / "bzImage", entry / "config", msgspec.json.decode(data, type=Built))


def need_host(machine: str) -> None:
    """Raises InputError `input-invalid`, DeviceError `package-missing` where no such kernel can be built."""
    if machine != "x86_64":
        raise error("input-invalid", f"this machine is {machine}; the lab builds its kernel on x86_64 only")
    for name, package in _NEEDED:
        if not name.startswith("/"):
            find_tool(name, package)
        elif not Path(name).is_file():
            raise error("package-missing", f"{name} is not there", hint=f"apt-get install {package}")


def _apt(arguments: list[str], folder: Path | None = None) -> str:
    command = ["apt-get", "download", "--quiet", *arguments]
    return run(command, package="apt", keep_environment=True, environment={"LC_ALL": "C"}, folder=folder)


def _build(folder: Path, out: Path, source: Source, compiler: str) -> None:
    tree, work = _unpack(folder, source), folder / "build"
    work.mkdir()
    config = configure(tree, work)
    before = _children_cpu_s()
    jobs = len(os.sched_getaffinity(0))
    make = ["nice", "-n", "5", "make", "-s", "-C", str(tree), f"O={work}"]
    run(
        [*make, f"-j{jobs}", "bzImage"],
        package="coreutils",
        environment=_ENVIRONMENT,
        timeout_s=_BUILD_WAIT_S_MAX,
    )
    with os_errors(f"kernel {out}"):
        out.mkdir()
        image = Path(shutil.copyfile(work / "arch/x86/boot/bzImage", out / "bzImage"))
        (out / "config").write_bytes(config)
        built = Built(source.version, compiler, round(_children_cpu_s() - before, 1), image.stat().st_size)
        (out / "built.json").write_bytes(msgspec.json.encode(built))


def _unpack(folder: Path, source: Source) -> Path:
    """The source tree of a version, fetched and unpacked in a folder."""
    _apt([f"{PACKAGE}={source.version}"], folder)
    with os_errors(f"folder {folder}"):
        (package,) = folder.glob("*.deb")
        run(["dpkg-deb", "--extract", str(package), str(folder)], package="dpkg")
        package.unlink()
        archive = folder / f"usr/src/{PACKAGE}.tar.xz"
        left_out = [f"--exclude={PACKAGE}/{pattern}" for pattern in _LEFT_OUT]
        run(["tar", "-xJf", str(archive), "-C", str(folder), *left_out], package="xz-utils")
        archive.unlink()
    return folder / PACKAGE


def configure(tree: Path, work: Path) -> bytes:
    """The configuration in `work`, as it came out of Kconfig and as the fragments want it.

    Everything else is off (allnoconfig), so that nothing of the fragments is there by chance. Raises
    DeviceError `kernel-options` when the result is not what they say.
    """
    texts = fragments()
    options = merged(texts)
    files = []
    for name, text in texts.items():
        files.append(work / f"{name}.config")
        with os_errors(f"fragment {name}"):
            files[-1].write_text(text, "utf-8")
    script = ["sh", "scripts/kconfig/merge_config.sh", "-n", "-O", str(work)]
    run([*script, *map(str, files)], package="dash", environment={"ARCH": "x86"}, folder=tree)
    base = work / ".config"
    config = read_bounded(base, kernel_check.CONFIG_SIZE_BYTES_MAX, "kernel configuration")
    require(config, options)
    return config


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
