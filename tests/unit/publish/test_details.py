"""What a release says of itself beside its bytes: packed, signed, inspected, published, refused."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.project_files import ROOT
from tests.unit.cli.operator_server import OperatorServer
from tests.unit.cli.world import PACK, Worlds
from twinlock.cli.main import main
from twinlock.core import details
from twinlock.core.details import Details
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import ADVISORY_LENGTH_MAX, DETAILS_SIZE_BYTES_MAX
from twinlock.publish import sbom

Capture = pytest.CaptureFixture[str]
VECTORS: dict[str, Any] = json.loads((ROOT / "tests/vectors/details-v1.json").read_text())
CYCLONEDX = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "components": [{"type": "library", "name": "zlib", "version": "1.3"}],
}
SPDX = {
    "spdxVersion": "SPDX-2.3",
    "SPDXID": "SPDXRef-DOCUMENT",
    "name": "demo",
    "documentNamespace": "https://example.org/demo",
    "packages": [{"SPDXID": "SPDXRef-1", "name": "zlib"}, {"SPDXID": "SPDXRef-2", "name": "xz"}],
}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A builder's folder with demo 1.0 signed, and demo 2.0 packed with details."""
    for name in ("SERVER", "TOKEN", "TOKEN_FILE", "CA_FILE", "REPO", "KEYS", "PASSPHRASE", "DEBUG"):
        monkeypatch.delenv(f"TWINLOCK_{name}", raising=False)
    made = Worlds(tmp_path_factory.mktemp("details")).enter(tmp_path, monkeypatch)
    (made / "sbom.json").write_text(json.dumps(CYCLONEDX))
    (made / "advisory").write_text("CVE-2026-1: mended\nCVE-2026-2: mended\n")
    options = ["--security", "--advisory", "advisory", "--support-ends", "2031-12-31", "--sbom", "sbom.json"]
    assert main(["release", "pack", "image", "--version", "2.0", "--counter", "4", *PACK, *options]) == 0
    return made


def code_of(step: Callable[[], object]) -> str:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value.code


def test_details_are_shown_signed_and_proven(
    world: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["release", "inspect", "demo-2.0"]) == 0
    shown = capsys.readouterr().out
    for text in ("security", "2031-12-31", "CVE-2026-1: mended", "kind cyclonedx; spec_version 1.6"):
        assert text in shown
    key = world / "keys/targets-main.pem"
    key.rename(world / "away.pem")
    assert main(["release", "sign", "demo-2.0"]) == 2
    capsys.readouterr()
    assert main(["release", "request"]) == 0
    said = capsys.readouterr().out
    assert "demo 2.0 is a security release, supported until 2031-12-31" in said
    assert "cyclonedx 1.6 SBOM of 1 components" in said
    assert "advisory: CVE-2026-2: mended" in said
    (world / "away.pem").rename(key)
    assert main(["release", "sign"]) == 0
    assert main(["release", "sign", "demo-2.0"]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    assert main(["release", "verify", "repo"]) == 0
    assert "demo/2.0.manifest: manifest, details and payloads" in capsys.readouterr().out
    assert main(["release", "list", "--repo", "repo"]) == 0
    assert ".details" not in capsys.readouterr().out


def test_details_and_sbom_are_published(world: Path, server_: OperatorServer, capsys: Capture) -> None:
    assert main(["release", "sign", "demo-2.0"]) == 0
    to_server = ["--server", server_.address, "--token-file", "token"]
    for _ in range(2):
        assert main(["release", "publish", "demo/2.0", *to_server]) == 0
    (path,) = (world / "repo/targets/demo").glob("*.details")
    made = details.decode(path.read_bytes())
    assert made.sbom is not None
    assert server_.payloads[made.sbom.sha256.hex()] == (world / "sbom.json").read_bytes()
    assert path.read_bytes() in server_.payloads.values()


@pytest.fixture
def server_() -> Any:
    with OperatorServer().running() as running:
        yield running


def test_details_can_be_added_but_never_changed(world: Path, capsys: Capture) -> None:
    plain = ["release", "pack", "image", "--version", "3.0", "--counter", "4", *PACK]
    assert main([*plain, "--out", "a"]) == 0
    assert main(["release", "sign", "a"]) == 0
    assert main([*plain, "--out", "b", "--security"]) == 0
    assert main(["release", "sign", "b"]) == 0
    assert main(["release", "verify", "repo"]) == 0
    (world / "advisory").write_text("something else")
    assert main([*plain, "--out", "c", "--advisory", "advisory"]) == 0
    capsys.readouterr()
    assert main(["release", "sign", "c"]) == 2
    assert "error[input-exists]: demo/3.0.details are signed already" in capsys.readouterr().err


def swap_sbom(world: Path) -> None:
    (path,) = (world / "repo/sboms").iterdir()
    path.write_text(json.dumps(SPDX))


def lose_sbom(world: Path) -> None:
    shutil.rmtree(world / "repo/sboms")


def swap_details(world: Path) -> None:
    (path,) = (world / "repo/targets/demo").glob("*.details")
    path.write_bytes(path.read_bytes().replace(b"security", b"feature"))


@pytest.mark.parametrize(
    ("change", "code"),
    [(swap_sbom, "details-hash"), (lose_sbom, "input-missing"), (swap_details, "details-hash")],
)
def test_what_is_not_what_was_signed_is_found(
    world: Path, capsys: Capture, change: Callable[[Path], None], code: str
) -> None:
    assert main(["release", "sign", "demo-2.0"]) == 0
    change(world)
    capsys.readouterr()
    assert main(["release", "verify", "repo"]) != 0
    assert f"error[{code}]" in capsys.readouterr().err


def test_a_folders_details_are_its_own(world: Path, capsys: Capture) -> None:
    path = world / "demo-2.0/2.0.details"
    path.write_bytes(path.read_bytes().replace(b"2031", b"2032"))
    assert main(["release", "sign", "demo-2.0"]) == 4
    assert "error[details-hash]" in capsys.readouterr().err


def test_a_request_that_lies_about_details(world: Path, capsys: Capture) -> None:
    (world / "keys/targets-main.pem").rename(world / "away.pem")
    assert main(["release", "sign", "demo-2.0"]) == 2
    assert main(["release", "request"]) == 0
    data = json.loads((world / "request.json").read_text())
    lie = base64.b64decode(data["manifests"]["demo/2.0.details"]).replace(b"security", b"feature")
    data["manifests"]["demo/2.0.details"] = base64.b64encode(lie).decode()
    (world / "request.json").write_text(json.dumps(data))
    capsys.readouterr()
    assert main(["release", "verify", "request.json"]) == 4
    assert "error[details-hash]" in capsys.readouterr().err


def test_the_vectors_of_version_1() -> None:
    made = details.decode(VECTORS["details"].encode())
    assert details.encode(made).decode() == VECTORS["details"]
    assert made.name == "demo/1.0.details"
    for name, case in VECTORS["refused"].items():
        data = json.loads(VECTORS["details"]) | case["change"]
        assert code_of(lambda data=data: details.decode(json.dumps(data).encode())) == case["code"], name  # type: ignore[misc]


def test_details_are_bounded() -> None:
    made = details.decode(VECTORS["details"].encode())
    details.check(replace_(made, advisory="x" * ADVISORY_LENGTH_MAX))
    more = replace_(made, advisory="x" * (ADVISORY_LENGTH_MAX + 1))
    assert code_of(lambda: details.check(more)) == "details-malformed"
    assert code_of(lambda: details.decode(b" " * (DETAILS_SIZE_BYTES_MAX + 1))) == "details-malformed"
    assert code_of(lambda: details.decode(b"[" * 5000)) == "details-malformed"


def replace_(made: Details, **changes: Any) -> Details:
    return msgspec.structs.replace(made, **changes)


def test_both_standards_are_known() -> None:
    one, two = (sbom.parse(json.dumps(data).encode(), "it") for data in (CYCLONEDX, SPDX))
    assert (one.kind, one.spec_version, one.components) == ("cyclonedx", "1.6", 1)
    assert (two.kind, two.spec_version, two.components) == ("spdx", "2.3", 2)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "input-wrong-type"),
        (b"{}", "input-wrong-type"),
        (b"[]", "input-wrong-type"),
        (b"\xff", "input-wrong-type"),
        (b"[" * 100_000, "input-wrong-type"),
        (json.dumps(CYCLONEDX | {"specVersion": "9.0"}).encode(), "format-unknown"),
        (json.dumps(CYCLONEDX | {"components": [{"type": "library"}]}).encode(), "input-wrong-type"),
        (json.dumps(CYCLONEDX | {"components": {}}).encode(), "input-wrong-type"),
        (json.dumps(SPDX | {"spdxVersion": "SPDX-9"}).encode(), "format-unknown"),
        (json.dumps(SPDX | {"SPDXID": "x"}).encode(), "input-wrong-type"),
        (json.dumps(SPDX | {"packages": [{"name": ""}]}).encode(), "input-wrong-type"),
    ],
)
def test_what_is_no_sbom_is_refused(data: bytes, code: str) -> None:
    assert code_of(lambda: sbom.parse(data, "it")) == code
