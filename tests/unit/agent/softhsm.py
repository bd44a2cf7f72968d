"""PKCS#11 tokens in software, as the tests of devices use them: a folder of their own, made by its tool."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from twinlock.agent.config import IdentityConfig

MODULES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm2.so")
LABEL = "device"
PIN = "123456"


def module() -> Path:
    return next(path for path in map(Path, MODULES) if path.exists())


@dataclass(frozen=True)
class Tokens:
    """A folder with tokens; processes see it by SOFTHSM2_CONF."""

    folder: Path

    @property
    def configuration(self) -> Path:
        return self.folder / "softhsm2.conf"

    @property
    def pin_file(self) -> Path:
        return self.folder / "token.pin"

    @property
    def identity(self) -> IdentityConfig:
        return IdentityConfig(module=module(), token=LABEL, pin_file=self.pin_file)

    @property
    def table(self) -> str:
        """[identity] for the agent's configuration."""
        return f'[identity]\nmodule = "{module()}"\ntoken = "{LABEL}"\npin_file = "{self.pin_file}"\n'

    def add(self, label: str = LABEL) -> None:
        """A new token without keys."""
        argv = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", "0000"]
        environment = {**os.environ, "SOFTHSM2_CONF": str(self.configuration)}
        subprocess.run(argv, check=True, capture_output=True, timeout=60, env=environment)

    def write_pin(self, pin: str) -> None:
        self.pin_file.write_text(pin)
        self.pin_file.chmod(0o600)


def empty(folder: Path) -> Tokens:
    """A folder for tokens, and a file with their PIN."""
    made = Tokens(folder)
    (folder / "tokens").mkdir(parents=True)
    made.configuration.write_text(f"directories.tokendir = {folder}/tokens\nlog.level = ERROR\n")
    made.write_pin(f"{PIN}\n")
    return made


def plugged_in(folder: Path, patch: pytest.MonkeyPatch) -> Tokens:
    """One token, which processes started from here see."""
    made = empty(folder)
    made.add()
    patch.setenv("SOFTHSM2_CONF", str(made.configuration))
    return made
