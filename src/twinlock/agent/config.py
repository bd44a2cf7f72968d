"""The agent's configuration: one small TOML file, every value checked before anything is done.

server = "https://updates.example.com"   # http only on loopback
hardware = "demo-board"
product = "demo"
device_id = "..."                        # optional; else derived from the device's key
state = "/var/lib/twinlock"
root = "/etc/twinlock/root.json"         # optional: the pinned root of trust, unless the state folder has one
director = "/etc/twinlock/director.json" # optional: the director's root; then nothing is installed without it

[slots.a]                                # offset_bytes and size_bytes for a part of a larger file
path = "/dev/mmcblk0p2"
[slots.b]
path = "/dev/mmcblk0p3"

[boot]
control = "file"                         # or "uboot", "grub", "systemd-boot", "tryboot", "efi"
path = "/dev/mmcblk0p4"
offset_bytes = [0, 65536]                # the two sectors of the boot record
booted = "/run/twinlock/booted.json"
tries = 3

[boot.loader]                            # for systemd-boot, tryboot and efi: what those loaders read
device = "/dev/mmcblk0p1"                # their FAT partition, mounted at `folder` for a change
arguments = { a = "root=... twinlock.slot=a", b = "root=... twinlock.slot=b" }
copies = { "/boot/vmlinuz" = "linux" }   # from a slot to that slot's folder on the partition

[identity]                               # optional: the device's key is made and kept on a PKCS#11 token
module = "/usr/lib/x86_64-linux-gnu/libtpm2_pkcs11.so.1"
token = "twinlock"                       # the token's label; or slot = 0
key = "twinlock-device"                  # the key's label
pin_file = "/data/identity/token.pin"    # readable by its owner only; left out for a token without a PIN

[reboot]
mode = "exit"                            # or "command", with command = ["systemctl", "reboot"]
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from twinlock.agent.address import check_url
from twinlock.core import limits
from twinlock.core.bootloader import slot_of
from twinlock.core.bootrecord import SECTOR_SIZE_BYTES
from twinlock.core.durable import read_bounded
from twinlock.core.errors import TwinlockError, error
from twinlock.core.names import RECOVERY, SLOTS, check_device_id, check_name

DEFAULT_PATH: Final = Path("/etc/twinlock/agent.toml")
CONFIG_SIZE_BYTES_MAX: Final = 64 * limits.KIB
# What one copy of the boot record takes, in the form of each loader
RECORD_SIZE_BYTES: Final = {
    "file": 512,
    "uboot": 512,
    "grub": 1024,
    "systemd-boot": 512,
    "tryboot": 512,
    "efi": 512,
}
# Loaders that cannot hold the record and read files of their own
BESIDE: Final = ("systemd-boot", "tryboot", "efi")

PARTUUID: Final = r"^([0-9a-f]{8}-[0-9a-f]{2}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})$"

CRITICAL_UNITS_MAX: Final = 64

Natural = Annotated[int, Meta(ge=0)]
# As PKCS#11 pads it: 32 bytes
TokenLabel = Annotated[str, Meta(min_length=1, max_length=32, pattern=r"^[ -~]*[!-~]$")]
UnitName = Annotated[str, Meta(max_length=256, pattern=r"^[\w:.\\@*?\[\]][\w:.\\@*?\[\]-]*$")]
Seconds = Annotated[float, Meta(gt=0, le=7 * 24 * 3600)]


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Unknown keys are refused: a misspelt one must not be silently without effect."""


class SlotConfig(_Table, frozen=True):
    """Where a slot is: a block device, or `size_bytes` of a file from `offset_bytes` on."""

    path: Path
    offset_bytes: Natural = 0
    size_bytes: Natural | None = None


class PartitionConfig(_Table, frozen=True):
    """The EFI system partition as firmware names it: its place in sectors, its id as in PARTUUID=."""

    number: Annotated[int, Meta(ge=1, le=256)]
    start_sectors: Natural
    size_sectors: Natural
    partuuid: Annotated[str, Meta(pattern=PARTUUID)]


class LoaderConfig(_Table, frozen=True):
    """What a loader beside the record reads.

    `folder` is where its FAT partition is, or with `device` where it is mounted while it is looked at.
    `arguments` are the kernel's command lines by slot; `copies` go from a slot to its folder there.
    """

    arguments: dict[str, Annotated[str, Meta(max_length=1024)]]
    copies: dict[str, str] = {}
    folder: Path = Path("/run/twinlock/boot")
    device: Path | None = None
    slot_folder: Path = Path("/run/twinlock/slot-mount")
    variables: Path = Path("/sys/firmware/efi/efivars")
    partition: PartitionConfig | None = None


class BootConfig(_Table, frozen=True):
    """Which boot control, and where its record is. `loader` is for those that cannot hold the record."""

    path: Path
    booted: Path
    control: Literal["file", "uboot", "grub", "systemd-boot", "tryboot", "efi"] = "file"
    loader: LoaderConfig | None = None
    offset_bytes: tuple[Natural, Natural] = (0, 65536)
    tries: Annotated[int, Meta(ge=1, le=limits.TRIES_MAX)] = 3


class RebootConfig(_Table, frozen=True):
    """How the device reboots: by a command, or by whoever sees exit code 10.

    `trial_command` is for a loader that takes the wish for a trial boot from the reboot (tryboot).
    """

    mode: Literal["exit", "command"] = "command"
    command: tuple[str, ...] = ("systemctl", "reboot")
    trial_command: tuple[str, ...] = ("systemctl", "reboot", "--reboot-argument=0 tryboot")


class HealthConfig(_Table, frozen=True):
    """The health gate. Hooks in `required` folders decide, those in `wanted` are reported.

    `timeout_s` bounds each hook, `deadline_s` all of them together; it is also the time, from the gate's
    start, for units to get up and for the server to be reached. When that stays out of reach, `unreachable`
    decides: "hooks" commits if there are required hooks and all passed, "rollback" goes back to the release
    that could be reached.

    `critical_units` are names of systemd units that must be up, or patterns (`*`) of units that must not have
    failed; `timer` is the one that starts the agent next. `free_bytes_min` must be left for the state.
    `verify_image`: "auto" reads the running slot back unless it is mounted read-write. `manager`: "none"
    leaves the machine's systemd, journal and kernel records alone: they are not this (virtual) device's.
    """

    required: tuple[Path, ...] = (Path("/etc/twinlock/health/required.d"),)
    wanted: tuple[Path, ...] = (Path("/etc/twinlock/health/wanted.d"),)
    timeout_s: Seconds = 60.0
    deadline_s: Seconds = 300.0
    unreachable: Literal["hooks", "rollback"] = "hooks"
    critical_units: Annotated[tuple[UnitName, ...], Meta(max_length=CRITICAL_UNITS_MAX)] = ()
    timer: Annotated[str, Meta(max_length=256, pattern=r"^([\w:.\\@][\w:.\\@-]*\.timer)?$")] = ""
    free_bytes_min: Natural = limits.MIB
    verify_image: Literal["auto", "always", "never"] = "auto"
    manager: Literal["auto", "none"] = "auto"


class NetworkConfig(_Table, frozen=True):
    """Bounds on every transfer. `retries` counts failures in a row without progress.

    `ways` are those by which an image may come, beside "full", which always may: "delta" makes it from the
    current slot, "adaptive" takes from the current slot what that holds. Both read the slot to spare bytes.
    """

    ways: tuple[Literal["delta", "adaptive", "full"], ...] = ("delta", "adaptive", "full")

    connect_timeout_s: Seconds = 20.0
    stall_timeout_s: Seconds = 30.0
    answer_timeout_s: Seconds = 60.0
    rate_bytes_s_min: Natural = 256
    rate_window_s: Seconds = 60.0
    retries: Annotated[int, Meta(ge=0, le=1000)] = 8
    backoff_s_min: Seconds = 1.0
    backoff_s_max: Seconds = 120.0
    check_timeout_s: Seconds = 300.0
    ca_file: Path | None = None


class HooksConfig(_Table, frozen=True):
    """Programs in FOLDER/pre-download.d, pre-install.d and pre-reboot.d may postpone (exit code 75)."""

    folder: Path = Path("/etc/twinlock/hooks")
    timeout_s: Seconds = 60.0


class IdentityConfig(_Table, frozen=True):
    """The PKCS#11 token that the device's key is on: by its label, or by the number of its slot."""

    module: Path
    token: TokenLabel | None = None
    slot: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None = None
    key: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")] = "twinlock-device"
    pin_file: Path | None = None


class Config(_Table, frozen=True):
    """All of it. Make it with `load`, which checks what types cannot say."""

    server: str
    hardware: str
    product: str
    state: Path
    slots: dict[str, SlotConfig]
    boot: BootConfig
    root: Path | None = None
    director: Path | None = None
    certificate: Path | None = None
    device_id: str = ""
    reboot: RebootConfig = RebootConfig()
    health: HealthConfig = HealthConfig()
    network: NetworkConfig = NetworkConfig()
    hooks: HooksConfig = HooksConfig()
    identity: IdentityConfig | None = None


def load(path: Path) -> Config:
    """The configuration in the file at `path`. Raises DeviceError `config-invalid`."""
    try:
        data = read_bounded(path, CONFIG_SIZE_BYTES_MAX, "configuration")
    except TwinlockError as problem:
        hint = f"give the agent's configuration with --config; the default is {DEFAULT_PATH}"
        raise error("config-invalid", problem.what, hint=hint) from problem
    try:
        return parse(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise error("config-invalid", f"{path} is no TOML file: {problem}") from problem
    except TwinlockError as problem:
        raise error("config-invalid", f"{path}: {problem.what}") from problem


def parse(table: dict[str, Any]) -> Config:
    """The configuration in a TOML table, checked. Raises DeviceError `config-invalid`."""
    try:
        config = msgspec.convert(table, Config, strict=True, dec_hook=_path)
        check_name(config.hardware, "hardware")
        check_name(config.product, "product")
        if config.device_id:
            check_device_id(config.device_id)
    except (msgspec.ValidationError, TwinlockError) as problem:
        raise error("config-invalid", str(getattr(problem, "what", problem))) from problem
    _check(config)
    return config


def _path(kind: type[Any], value: object) -> Any:
    if kind is Path and isinstance(value, str) and value and "\0" not in value:
        return Path(value)
    raise ValueError("expected a path")


def _check(config: Config) -> None:
    network, boot, identity = config.network, config.boot, config.identity
    a, b = (config.slots.get(slot) for slot in SLOTS)
    rules = (
        (set(config.slots) == set(SLOTS), "the slots are [slots.a] and [slots.b]"),
        (a is None or b is None or not _overlap(a, b), "the two slots overlap"),
        (
            abs(boot.offset_bytes[0] - boot.offset_bytes[1]) >= RECORD_SIZE_BYTES[boot.control],
            "the boot record's two sectors overlap",
        ),
        (
            all(offset % SECTOR_SIZE_BYTES == 0 for offset in boot.offset_bytes),
            "the boot record's sectors are unaligned",
        ),
        (network.backoff_s_min <= network.backoff_s_max, "backoff_s_min is above backoff_s_max"),
        (bool(config.reboot.command and config.reboot.trial_command), "the reboot command is empty"),
        (
            boot.control != "tryboot" or config.reboot.mode == "command",
            'tryboot needs reboot.mode = "command": the reboot carries the wish for a trial boot',
        ),
        *_loader_rules(boot),
        *(
            (path is None or path.is_absolute(), f"{name} is not an absolute path")
            for name, path in (
                ("state", config.state),
                ("root", config.root),
                ("director", config.director),
                ("certificate", config.certificate),
                ("identity.module", None if identity is None else identity.module),
                ("identity.pin_file", None if identity is None else identity.pin_file),
            )
        ),
        (
            identity is None or (identity.token is None) != (identity.slot is None),
            "[identity] names the token by `token` or by `slot`",
        ),
        (
            not any(
                _holds(slot, boot, offset) for slot in config.slots.values() for offset in boot.offset_bytes
            ),
            "the boot record lies in a slot",
        ),
    )
    for holds, what in rules:
        if not holds:
            raise error("config-invalid", what)
    address = check_url(config.server)
    if address.query or address.fragment:
        raise error("config-invalid", "the server's address has a query")


def _loader_rules(boot: BootConfig) -> list[tuple[bool, str]]:
    """What must hold of [boot.loader], with what to say when it does not."""
    loader = boot.loader
    if loader is None or boot.control not in BESIDE:
        return [
            (
                (loader is None) == (boot.control not in BESIDE),
                f"{boot.control}: [boot.loader] is wanted or not",
            )
        ]
    names = set(loader.arguments)
    words = all(slot_of(text) == slot for slot, text in loader.arguments.items())
    lines = all(char.isprintable() and char.isascii() for text in loader.arguments.values() for char in text)
    plain = all(
        not name.startswith("/") and ".." not in name.split("/") and "\\" not in name
        for name in loader.copies.values()
    )
    return [
        (set(SLOTS) <= names <= {*SLOTS, RECOVERY}, "boot.loader.arguments are for a, b and recovery"),
        (words, "boot.loader.arguments of a slot name it: twinlock.slot=NAME"),
        (lines, "boot.loader.arguments are one line of ASCII each"),
        (plain, "boot.loader.copies go to names below the slot's folder"),
        ("linux" in loader.copies.values(), 'boot.loader.copies name the kernel, as "linux"'),
        (boot.control != "efi" or loader.partition is not None, "efi needs [boot.loader.partition]"),
    ]


def _holds(slot: SlotConfig, boot: BootConfig, offset_bytes: int) -> bool:
    """Whether a copy of the boot record lies in the slot."""
    if slot.path != boot.path:
        return False
    if slot.size_bytes is None:
        return offset_bytes + RECORD_SIZE_BYTES[boot.control] > slot.offset_bytes
    end = slot.offset_bytes + slot.size_bytes
    return slot.offset_bytes - RECORD_SIZE_BYTES[boot.control] < offset_bytes < end


def _overlap(a: SlotConfig, b: SlotConfig) -> bool:
    if a.path != b.path:
        return False
    if a.size_bytes is None or b.size_bytes is None:
        return True
    return a.offset_bytes < b.offset_bytes + b.size_bytes and b.offset_bytes < a.offset_bytes + a.size_bytes
