"""All loaders, by the names of the agent's boot controls for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.lab.crash.beside import BESIDE
from twinlock.lab.crash.loaders import FileLoader, GrubLoader, UbootLoader

if TYPE_CHECKING:
    from twinlock.lab.crash.loaders import Loader

LOADERS: Final[dict[str, Loader]] = {
    one.name: one for one in (FileLoader(), UbootLoader(), GrubLoader(), *BESIDE)
}
