"""`twinlock disk` and `twinlock kernel` as a builder types them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from twinlock.cli.main import main
from twinlock.provision import kernel_check

Capture = pytest.CaptureFixture[str]
DESCRIPTION = """
name = "small"
align = "1 MiB"
boot.size = "4 MiB"
slot.size = "8 MiB"
recovery.size = "8 MiB"
data.size = "8 MiB"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A builder's folder: a description and a small root file system."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.toml").write_text(DESCRIPTION)
    (tmp_path / "empty.toml").write_text("")
    for name in ("boot", "etc", "usr/bin", "usr/lib"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root/boot/vmlinuz").write_bytes(b"kernel" * 1000)
    return tmp_path


def answer(capture: Capture, *args: str) -> Any:
    assert main([*args, "--json"]) == 0
    return json.loads(capture.readouterr().out)


def failure(capture: Capture, *args: str) -> tuple[str, int]:
    code = main(args)
    out, err = capture.readouterr()
    assert "Traceback" not in out + err
    (line,) = [line for line in err.splitlines() if line.startswith("error[")]
    return line[len("error[") : line.index("]")], code


def test_the_plan_of_an_empty_description_is_shown(capsys: Capture) -> None:
    data = answer(capsys, "disk", "plan", "empty.toml")
    assert [part["role"] for part in data["partitions"]] == ["boot", "record", "a", "b", "recovery", "data"]
    assert data["version"] == 1
    assert main(["disk", "plan", "empty.toml"]) == 0
    assert "1.0 GiB" in capsys.readouterr().out


def test_from_a_tree_to_a_disk(capsys: Capture, folder: Path) -> None:
    options = ["--server", "https://u.example.com", "--product", "demo", "--hardware", "board"]
    installed = answer(capsys, "disk", "install", "root", "disk.toml", *options)
    assert "usr/lib/twinlock/preinit" in installed["files"]
    assert any("python3" in note for note in installed["notes"])
    made = answer(capsys, "disk", "image", "root", "--disk", "disk.toml", "--size", "6 MiB")
    assert (folder / "slot.img").stat().st_size == made["size_bytes"] == 6 * 1024 * 1024
    built = answer(capsys, "disk", "build", "disk.toml", "--a", "slot.img")
    assert (folder / "disk.img").stat().st_size == built["size_bytes"]


def test_people_are_told_what_a_device_without_recovery_means(capsys: Capture) -> None:
    assert main(["disk", "build", "disk.toml", "--a", "root"]) == 0
    out, err = capsys.readouterr()
    assert "needs a visit" in err
    assert "disk.img" in out


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("disk plan missing.toml", "input-missing"),
        ("disk plan root", "input-wrong-type"),
        ("disk plan root/boot/vmlinuz", "input-wrong-type"),
        ("disk plan binary", "input-wrong-type"),
        ("disk build disk.toml --a missing", "input-missing"),
        ("disk build disk.toml --a root --b missing", "input-missing"),
        ("disk build disk.toml --a root --out disk.toml", "input-exists"),
        ("disk build disk.toml --a root --arch z80", "input-invalid"),
        ("disk image root --out disk.toml", "input-exists"),
        ("disk image root --size 9TiB", "image-too-large"),
        ("disk image root --size much", "input-invalid"),
        ("disk image missing", "input-wrong-type"),
        ("disk install missing disk.toml --server https://x --product p --hardware h", "input-wrong-type"),
        ("disk install root disk.toml --server x --product p --hardware h", "input-invalid"),
        ("kernel check missing", "input-missing"),
        ("kernel check disk.toml", "input-wrong-type"),
        ("kernel check config --fragment nothing", "not-found"),
        ("kernel fragment nothing", "not-found"),
        ("kernel check config", "kernel-options"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(capsys: Capture, folder: Path, command: str, code: str) -> None:
    (folder / "binary").write_bytes(b"\xff\xfe\x00")
    (folder / "config").write_text("CONFIG_PANIC_TIMEOUT=0\n")
    before = sorted(path.name for path in folder.iterdir())
    found, exit_code = failure(capsys, *command.split())
    assert found == code
    assert exit_code in (2, 5, 6)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_kernel_is_judged_and_each_finding_says_why(capsys: Capture, folder: Path) -> None:
    options = kernel_check.shipped_fragment("update")
    lines = [f"CONFIG_{option.name}={option.value}\n" for option in options if not option.wanted]
    (folder / "config.gz").write_bytes(gzip.compress("".join(lines).encode()))
    data = answer(capsys, "kernel", "check", "config.gz", "--fragment", "update")
    assert data["checked"] == len(options)
    assert data["findings"]
    assert not [finding for finding in data["findings"] if finding["required"] or not finding["reason"]]
    assert main(["kernel", "check", "config.gz"]) == 0
    assert "CONFIG_SQUASHFS=y" in capsys.readouterr().out


def test_a_fragment_is_printed_as_the_kernels_own_scripts_read_it(capsys: Capture) -> None:
    names = answer(capsys, "kernel", "fragment")["fragments"]
    assert "low-memory" in names
    assert main(["kernel", "fragment", "low-memory"]) == 0
    out = capsys.readouterr().out
    assert "\n# CONFIG_HIGHMEM is not set\n" in out
    assert out == kernel_check.fragment_text("low-memory")
