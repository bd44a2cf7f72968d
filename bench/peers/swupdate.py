"""SWUpdate: a CMS-signed .swu whose raw image streams straight to the slot."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.harness import BenchError, Measured, measure, tool
from bench.peers.setup import certificate

NAME = "SWUpdate"

_DESCRIPTION = """software = {{
  version = "1.0.0";
  hardware-compatibility: [ "1.0" ];
  images: ({{
    filename = "{filename}";
    device = "{slot}";
    type = "raw";
    {compressed}
    sha256 = "{sha256}";
    installed-directly = true;
  }});
}};
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A signed .swu and the certificate that vouches for it."""

    bundle: Path
    cert: Path


def version() -> str:
    """Name and version; SWUpdate's own `--version` may leave the number out, Debian's package does not."""
    return f"{NAME} {tool(['dpkg-query', '--show', '--showformat=${source:Upstream-Version}', 'swupdate'])}"


def prepare(workdir: Path, image: Path, slot: Path) -> Prepared:
    """Make the signed .swu (image compressed with zstd) that installs `image` to `slot`."""
    workdir.mkdir(parents=True, exist_ok=True)
    key, cert = certificate(workdir)
    payload = workdir / "image.ext4.zst"
    tool(["zstd", "-q", "-f", "-3", image, "-o", payload])
    with payload.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    description = workdir / "sw-description"
    description.write_text(
        _DESCRIPTION.format(
            filename=payload.name, slot=slot, compressed='compressed = "zstd";', sha256=sha256
        )
    )
    signature = workdir / "sw-description.sig"
    sign: list[str | Path] = ["openssl", "cms", "-sign", "-outform", "DER", "-nosmimecap", "-binary"]
    tool([*sign, "-in", description, "-out", signature, "-signer", cert, "-inkey", key])
    bundle = workdir / "image.swu"
    members = "\n".join([description.name, signature.name, payload.name]) + "\n"
    with bundle.open("wb") as output:
        argv = ["cpio", "--quiet", "-o", "-H", "crc", "-L"]
        done = subprocess.run(argv, input=members.encode(), stdout=output, cwd=workdir)
    if done.returncode:
        raise BenchError(f"cpio ended with {done.returncode}")
    return Prepared(bundle, cert)


def install(prepared: Prepared) -> Measured:
    """One installation from the local file, from start to end of the process."""
    argv: list[str | Path] = [
        "swupdate",
        "-l",
        "1",
        "-H",
        "bench:1.0",
        "-k",
        prepared.cert,
        "-i",
        prepared.bundle,
    ]
    env = {**os.environ, "TMPDIR": str(prepared.bundle.parent)}
    return measure(argv, env=env)
