"""Software bills of materials: enough is read of a file to know what it is, and that it is whole.

| standard      | versions | what is read                                                     | source       |
|---------------|----------|------------------------------------------------------------------|--------------|
| CycloneDX JSON| 1.2-1.7  | bomFormat, specVersion, and type and name of each component      | ECMA-424     |
| SPDX JSON     | 2.2, 2.3 | spdxVersion, SPDXID, name, namespace, name and id of each package| ISO/IEC 5962 |

Anything else, and any other version, is refused: what is signed as an SBOM shall be one.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from twinlock.core import limits
from twinlock.core.details import Sbom
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error

CYCLONEDX: Final = ("1.2", "1.3", "1.4", "1.5", "1.6", "1.7")
SPDX: Final = ("SPDX-2.2", "SPDX-2.3")

Text = Annotated[str, msgspec.Meta(min_length=1, max_length=4096)]


class _Head(msgspec.Struct):
    bom_format: str = msgspec.field(name="bomFormat", default="")
    spec_version: str = msgspec.field(name="specVersion", default="")
    spdx_version: str = msgspec.field(name="spdxVersion", default="")


class _Component(msgspec.Struct):
    type: Text
    name: Text


class _CycloneDx(msgspec.Struct):
    bom_format: Literal["CycloneDX"] = msgspec.field(name="bomFormat")
    components: list[_Component] = []


class _Package(msgspec.Struct):
    id: Text = msgspec.field(name="SPDXID")
    name: Text


class _Spdx(msgspec.Struct):
    id: Literal["SPDXRef-DOCUMENT"] = msgspec.field(name="SPDXID")
    name: Text
    namespace: Text = msgspec.field(name="documentNamespace")
    packages: list[_Package] = []


def read(path: Path) -> tuple[bytes, Sbom]:
    """The file's bytes and what they are.

    Raises InputError `input-missing`, `input-too-large`, `input-wrong-type`, TrustError `format-unknown` for
    a version of a standard that is not listed above.
    """
    data = read_bounded(path, limits.SBOM_SIZE_BYTES_MAX, "SBOM")
    return data, parse(data, f"SBOM {path}")


def parse(data: bytes, what: str) -> Sbom:
    """What the bytes are; see `read`."""
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.bom_format == "CycloneDX":
            if head.spec_version not in CYCLONEDX:
                raise error("format-unknown", f"{what} is of CycloneDX version {head.spec_version[:16]!r}")
            count = len(msgspec.json.decode(data, type=_CycloneDx).components)
            return Sbom("cyclonedx", head.spec_version, hashlib.sha256(data).digest(), len(data), count)
        if head.spdx_version:
            if head.spdx_version not in SPDX:
                raise error("format-unknown", f"{what} is of SPDX version {head.spdx_version[:16]!r}")
            count = len(msgspec.json.decode(data, type=_Spdx).packages)
            version = head.spdx_version.removeprefix("SPDX-")
            return Sbom("spdx", version, hashlib.sha256(data).digest(), len(data), count)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as problem:
        raise error("input-wrong-type", f"{what} is no CycloneDX or SPDX file: {problem}") from problem
    raise error(
        "input-wrong-type",
        f"{what} is neither CycloneDX nor SPDX in JSON",
        hint="export it as CycloneDX 1.2 to 1.7 or SPDX 2.2 or 2.3, as JSON",
    )
