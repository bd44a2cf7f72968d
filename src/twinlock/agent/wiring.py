"""The one place that puts real ports together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.agent.boot.choose import boot_control
from twinlock.agent.checker import ChildChecker
from twinlock.agent.clock import SystemClock, SystemRandom
from twinlock.agent.display import AgentDisplay
from twinlock.agent.hooks import FolderHooks
from twinlock.agent.http import HttpNetwork
from twinlock.agent.linux import LinuxSystem
from twinlock.agent.ports import Ports
from twinlock.agent.power import ConfiguredPower
from twinlock.agent.slots import ConfiguredSlots
from twinlock.agent.store import FolderStore

if TYPE_CHECKING:
    from pathlib import Path

    from twinlock.agent.config import Config


def build_ports(config: Config, config_path: Path, lock_fd: int | None = None) -> Ports:
    """The ports of this machine. The metadata process gets `config_path`, and holds `lock_fd` too."""
    clock, random = SystemClock(), SystemRandom()
    store = FolderStore(config.state)
    return Ports(
        clock=clock,
        random=random,
        store=store,
        slots=ConfiguredSlots(config.slots),
        boot=boot_control(config.boot, config.slots),
        network=HttpNetwork(clock, config.network),
        checker=ChildChecker(store, random, config_path, config.network.check_timeout_s, lock_fd),
        hooks=FolderHooks(config.health, config.hooks, clock),
        power=ConfiguredPower(config.reboot),
        display=AgentDisplay(store, clock),
        system=LinuxSystem(config),
    )
