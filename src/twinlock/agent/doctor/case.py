"""What every check is given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from twinlock.agent.boot.choose import boot_control
from twinlock.agent.store import FolderStore

if TYPE_CHECKING:
    from twinlock.agent.boot.file import FileBootControl
    from twinlock.agent.config import Config
    from twinlock.agent.doctor.world import World
    from twinlock.agent.ports import Clock


@dataclass(frozen=True, slots=True)
class Case:
    """A device: its configuration with all paths below the world's root, its files, its clock."""

    config: Config
    world: World
    clock: Clock
    config_path: Path

    @property
    def store(self) -> FolderStore:
        return FolderStore(self.config.state)

    def control(self) -> FileBootControl:
        """The device's boot control."""
        return boot_control(self.config.boot, self.config.slots)


def placed(config: Config, world: World) -> Config:
    """The configuration with its paths below the world's root."""

    def at(path: Path | None) -> Path | None:
        return None if path is None else world.path(path)

    replace = msgspec.structs.replace
    boot, loader = config.boot, config.boot.loader
    if loader is not None:
        loader = replace(
            loader,
            folder=at(loader.folder),
            device=at(loader.device),
            slot_folder=at(loader.slot_folder),
            variables=at(loader.variables),
        )
    slots = {name: replace(slot, path=at(slot.path)) for name, slot in config.slots.items()}
    boot = replace(boot, path=at(boot.path), booted=at(boot.booted), loader=loader)
    own = config.identity
    if own is not None:
        own = replace(own, module=at(own.module), pin_file=at(own.pin_file))
    return replace(config, state=at(config.state), root=at(config.root), slots=slots, boot=boot, identity=own)
