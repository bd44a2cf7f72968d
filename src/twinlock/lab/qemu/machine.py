"""One virtual device: real firmware, its disk as NVMe, its serial console, and a hand on its power switch.

    arm64   board virt, U-Boot from Debian, which runs boot.scr from the disk
    x86-64  board q35, OVMF from Debian, which starts GRUB from the disk's EFI partition

The QEMU process is this process's child, dies with it, and is ended by its own process id.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from twinlock.core.durable import os_errors
from twinlock.core.errors import error
from twinlock.core.limits import MIB
from twinlock.lab.qemu.accel import accelerator
from twinlock.lab.qemu.console import Console
from twinlock.provision.tools import find_tool

if TYPE_CHECKING:
    from types import TracebackType

Architecture = Literal["arm64", "x86-64"]
ARCHITECTURES: Final[tuple[Architecture, ...]] = ("arm64", "x86-64")
UBOOT: Final = Path("/usr/lib/u-boot/qemu_arm64/u-boot.bin")
OVMF_CODE: Final = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
OVMF_VARIABLES: Final = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
# Emulated processors are slow and machines are shared: processor time bounds a wait, wall time is the net.
WAIT_CPU_S_MAX: Final = 120.0
WAIT_WALL_S_MAX: Final = 900.0
# What was translated before a reset makes every write to its page slow, until this buffer is full and all of
# it is dropped: with QEMU's default of 1 GiB a kernel unpacks itself four times slower after a reset.
_TCG: Final = "tcg,thread=single,tb-size=192"
_FORWARD: Final = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)")
_QMP_LINE_BYTES_MAX: Final = 1 * MIB
_QMP_WAIT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What the device is. `disk` is an image file, or the unix socket of an NBD server when `nbd` is set."""

    architecture: Architecture
    disk: Path
    nbd: bool = False
    memory_mib: int = 256
    network: bool = False
    watchdog: bool = False
    forward_port: int = 0  # a TCP port of the guest that is reached through `Machine.forwarded_port`
    more: tuple[Path, ...] = ()  # further disks, raw images: the second, third ... NVMe device
    extra: tuple[str, ...] = ()


def ending_with(parent: int, command: list[str]) -> list[str]:
    """A command that the kernel kills when the process `parent`, which is to start it, ends (prctl(2)).

    A parent that ended before the kernel was told sends nothing any more: then the command is not run at all.
    """
    still_there = '[ "$PPID" = "$0" ] && exec "$@"'
    return [
        find_tool("setpriv", "util-linux"),
        "--pdeathsig",
        "KILL",
        "sh",
        "-c",
        still_there,
        str(parent),
        *command,
    ]


class Machine:
    """A running device. Use it as a context manager: leaving it ends QEMU, whatever happened."""

    def __init__(self, spec: MachineSpec, folder: Path) -> None:
        self.spec = spec
        self._folder = folder
        self._qmp: socket.socket | None = None
        self._qmp_buffer = b""
        self.accelerator = accelerator(spec.architecture)
        self._control = folder / "qmp.sock"
        self._control.unlink(missing_ok=True)
        command = ending_with(os.getpid(), self._command())
        with os_errors("QEMU"):
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        assert self._process.stdout is not None
        self.console = Console(self._process.stdout, folder / "console.log")  # type: ignore[arg-type]
        self._cpu_s_at_end: float | None = None
        self._cpu_s_seen = 0.0

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.power_off()

    def _command(self) -> list[str]:
        spec = self.spec
        if spec.architecture == "arm64":
            command = [find_tool("qemu-system-aarch64", "qemu-system-arm"), "-M", "virt,gic-version=2"]
            command += ["-accel", _TCG, "-cpu", "cortex-a53"]
            command += ["-bios", str(_installed(UBOOT, "u-boot-qemu"))]
        else:
            variables = self._folder / "ovmf-variables.fd"
            if not variables.exists():
                shutil.copyfile(_installed(OVMF_VARIABLES, "ovmf"), variables)
            command = [find_tool("qemu-system-x86_64", "qemu-system-x86"), "-M", "q35,smm=off"]
            command += ["-accel", "kvm" if self.accelerator == "kvm" else _TCG]
            command += ["-cpu", "host" if self.accelerator == "kvm" else "qemu64"]
            code = _installed(OVMF_CODE, "ovmf")
            command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_value(code)}"]
            command += ["-drive", f"if=pflash,format=raw,unit=1,file={_value(variables)}"]
        command += ["-m", str(spec.memory_mib), "-nodefaults", "-display", "none"]
        command += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
        command += ["-qmp", f"unix:{_value(self._control)},server=on,wait=off"]
        driver = {"driver": "file", "filename": str(spec.disk)}
        if spec.nbd:
            driver = {"driver": "nbd", "server.type": "unix", "server.path": str(spec.disk)}
        node = ",".join(f"{name}={_value(value)}" for name, value in driver.items())
        command += [
            "-blockdev",
            f"{node},node-name=medium",
            "-blockdev",
            "driver=raw,file=medium,node-name=disk",
        ]
        command += ["-device", "nvme,drive=disk,serial=twinlock"]
        for number, path in enumerate(spec.more, start=1):
            medium = f"file.driver=file,file.filename={_value(path)}"
            command += ["-blockdev", f"driver=raw,node-name=more{number},{medium}"]
            command += ["-device", f"nvme,drive=more{number},serial=more{number}"]
        if spec.network:
            forward = f",hostfwd=tcp:127.0.0.1:0-:{spec.forward_port}" if spec.forward_port else ""
            command += ["-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        if spec.watchdog:
            command += ["-device", "i6300esb", "-action", "watchdog=reset"]
        return [*command, *spec.extra]

    @property
    def pid(self) -> int:
        """The process id of QEMU."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether QEMU has not ended yet."""
        return self._process.poll() is None

    def cpu_s(self) -> float:
        """Processor seconds that QEMU has used so far, user and system."""
        if self._cpu_s_at_end is not None:
            return self._cpu_s_at_end
        try:
            text = Path(f"/proc/{self.pid}/stat").read_text("ascii", "replace")
        except OSError:
            return self._cpu_s_seen  # it has ended by itself
        fields = text.rpartition(")")[2].split()
        self._cpu_s_seen = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return self._cpu_s_seen

    def wait_for(
        self,
        pattern: str,
        *,
        since: int = 0,
        cpu_s_max: float = WAIT_CPU_S_MAX,
        wall_s_max: float = WAIT_WALL_S_MAX,
    ) -> re.Match[str]:
        """The first match of `pattern` in what the console printed from byte `since` on.

        Raises DeviceError `lab-timeout` when the device used more processor or wall time without printing it,
        `lab-ended` when QEMU ended first.
        """
        cpu_start, wall_start = self.cpu_s(), time.monotonic()

        def give_up() -> bool:
            if not self.running:
                return True
            return self.cpu_s() - cpu_start > cpu_s_max or time.monotonic() - wall_start > wall_s_max

        match = self.console.wait(re.compile(pattern), since, give_up)
        if match is not None:
            return match
        last = self.console.text()[-2000:]
        if not self.running:
            raise error(
                "lab-ended", f"QEMU ended (status {self._process.returncode}) before {pattern!r}:\n{last}"
            )
        used = f"{self.cpu_s() - cpu_start:.0f} s of CPU, {time.monotonic() - wall_start:.0f} s"
        raise error("lab-timeout", f"the device did not print {pattern!r} within {used}:\n{last}")

    def send(self, text: str) -> None:
        """Types on the console."""
        assert self._process.stdin is not None
        with os_errors("the device's console"):
            self._process.stdin.write(text.encode("utf-8"))
            self._process.stdin.flush()

    def reset(self) -> None:
        """Presses the reset button: memory is lost, the disk keeps its power and its cache."""
        self.command("system_reset")

    def command(self, name: str, **arguments: Any) -> Any:
        """One command of QEMU's machine protocol (QMP), and its answer.

        Raises DeviceError `lab-ended` when QEMU is gone, `io-error` when it refuses.
        """
        try:
            if self._qmp is None:
                self._qmp = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                self._qmp.settimeout(_QMP_WAIT_S)
                self._connect(self._qmp)
                self._answer(greeting=True)
                self._tell(self._qmp, "qmp_capabilities", {})
                self._answer()
            self._tell(self._qmp, name, arguments)
            return self._answer()
        except OSError as problem:
            raise error("lab-ended", f"QEMU does not answer {name!r}: {problem}") from problem

    def forwarded_port(self) -> int:
        """The port on 127.0.0.1 that leads to the guest's `forward_port`; the system chose it.

        Raises DeviceError `lab-ended` when QEMU is gone.
        """
        told = self.command("human-monitor-command", **{"command-line": "info usernet"})
        match = _FORWARD.search(told)
        if match is None:
            raise error("lab-ended", f"QEMU forwards no port: {told[:200]!r}")
        return int(match[1])

    def _connect(self, qmp: socket.socket) -> None:
        deadline = time.monotonic() + _QMP_WAIT_S
        while True:
            try:
                return qmp.connect(str(self._control))
            except (FileNotFoundError, ConnectionRefusedError):
                # QEMU makes the socket while it starts; there is nothing to wait on but its appearance.
                if not self.running or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @staticmethod
    def _tell(qmp: socket.socket, name: str, arguments: dict[str, Any]) -> None:
        qmp.sendall(json.dumps({"execute": name, "arguments": arguments}).encode("ascii") + b"\n")

    def _answer(self, *, greeting: bool = False) -> Any:
        assert self._qmp is not None
        while True:
            line, end, rest = self._qmp_buffer.partition(b"\n")
            if not end:
                data = self._qmp.recv(65536)
                if not data or len(self._qmp_buffer) > _QMP_LINE_BYTES_MAX:
                    raise ConnectionResetError("the connection ended")
                self._qmp_buffer += data
                continue
            self._qmp_buffer = rest
            message = json.loads(line)
            if "error" in message:
                raise error("io-error", f"QEMU refused: {message['error'].get('desc', message['error'])}")
            if greeting or "return" in message:
                return message.get("return")

    def wait_end(self, *, wall_s_max: float = WAIT_WALL_S_MAX) -> int:
        """QEMU's exit status, once the guest has switched itself off. Raises DeviceError `lab-timeout`."""
        try:
            status = self._process.wait(wall_s_max)
        except subprocess.TimeoutExpired as problem:
            raise error(
                "lab-timeout", f"the device did not switch off within {wall_s_max:.0f} s"
            ) from problem
        self.power_off()
        return status

    def power_off(self) -> None:
        """Takes the power away: QEMU is killed. Safe to call again."""
        if self._cpu_s_at_end is None and self.running:
            self._cpu_s_at_end = self.cpu_s()
        if self.running:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self.console.join()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # typed text that the dead machine never read
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None


def _value(text: str | Path) -> str:
    """A value in one of QEMU's lists of options, where a comma ends it unless it is doubled."""
    return str(text).replace(",", ",,")


def _installed(path: Path, package: str) -> Path:
    if not path.is_file():
        raise error("package-missing", f"{path} is not there", hint=f"apt-get install {package}")
    return path
