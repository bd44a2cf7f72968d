"""Installing into a tree: what is added, what is refused, and the scripts run in a world made of folders."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from twinlock.agent import config as agent_config
from twinlock.core.errors import TwinlockError
from twinlock.provision import layout, rootfs
from twinlock.provision.rootfs import AgentOptions, RootfsOptions
from twinlock.provision.tools import run

AGENT = AgentOptions(server="https://updates.example.com", product="gateway", hardware="board-1")
ELF = Path(sys.executable).read_bytes()[:4]


def options(text: str = "") -> RootfsOptions:
    return RootfsOptions(plan=layout.plan(layout.parse_spec(text)), agent=AGENT)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small system as a build leaves it: merged /usr, an SSH server."""
    root = tmp_path / "root"
    for name in ("etc/ssh", "usr/bin", "usr/sbin", "usr/lib", "boot"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib"):
        (root / name).symlink_to(f"usr/{name}")
    (root / "usr/sbin/sshd").write_text("")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")
    (root / "etc/fstab").write_text("# mine\n")
    return root


def files_of(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes().hex()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_doing_it_twice_changes_nothing_and_the_builds_files_stay(tree: Path) -> None:
    before = files_of(tree)
    first = rootfs.install(tree, options())
    once = files_of(tree)
    rootfs.install(tree, options())
    assert files_of(tree) == once
    changed = {name for name, content in before.items() if once[name] != content}
    assert changed == {"etc/machine-id"}
    assert set(once) - set(before) == set(first.files) - {"etc/machine-id"}


def test_a_baked_in_machine_id_does_not_reach_the_devices(tree: Path) -> None:
    rootfs.install(tree, options())
    assert (tree / "etc/machine-id").read_bytes() == b""


@pytest.mark.parametrize("kind", ["uboot", "grub", "systemd-boot", "tryboot", "efi"])
@pytest.mark.parametrize("table", ["gpt", "mbr"])
def test_the_agents_configuration_names_the_plans_places(kind: str, table: str) -> None:
    made = options(f"table = '{table}'\nloader.kind = '{kind}'")
    text = tomllib.loads(rootfs.agent_config(made))
    plan = made.plan
    assert text["slots"]["a"]["path"] == f"/dev/disk/by-partuuid/{plan.need('a').partuuid}"
    assert text["boot"]["path"].endswith(plan.need("record").partuuid)
    start = plan.need("record").start_bytes
    assert [start + offset for offset in text["boot"]["offset_bytes"]] == list(plan.record_offsets)
    parsed = agent_config.parse(text)
    assert parsed.boot.control == kind
    assert (parsed.health.timer, parsed.health.critical_units) == ("twinlock-agent.timer", ())
    made = replace(made, agent=replace(AGENT, critical_units=("app.service", "db@*")))
    text = tomllib.loads(rootfs.agent_config(made))
    assert agent_config.parse(text).health.critical_units == ("app.service", "db@*")


@pytest.mark.parametrize(("disk", "path"), [("/dev/mmcblk0", "/dev/mmcblk0p3"), ("/dev/sda", "/dev/sda3")])
def test_a_named_disk_gives_device_files(disk: str, path: str) -> None:
    text = tomllib.loads(rootfs.agent_config(replace(options(), disk=disk)))
    assert text["slots"]["a"]["path"] == path


@pytest.mark.parametrize(
    "changed",
    [
        replace(options(), python="python3"),
        replace(options(), init="/sbin/../x"),
        replace(options(), data_mount="/"),
        replace(options(), data_mount="/da ta"),
        replace(options(), disk="/dev/x;reboot"),
        replace(options(), application_paths=("identity/ssh",)),
        replace(options(), application_paths=("../etc",)),
        replace(options(), watchdog_s=-1),
        replace(options(), agent=replace(AGENT, critical_units=("--all",))),
        replace(options(), agent=replace(AGENT, server="ftp://x")),
        replace(options(), agent=replace(AGENT, product="a b")),
        replace(options(), agent=replace(AGENT, hardware="")),
        replace(options(), agent=replace(AGENT, poll_s=0)),
        replace(options(), agent=replace(AGENT, tries=8)),
        replace(options(), agent=replace(AGENT, trial_s=1)),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_written(
    tree: Path, changed: RootfsOptions
) -> None:
    before = files_of(tree)
    with pytest.raises(TwinlockError) as caught:
        rootfs.install(tree, changed)
    assert caught.value.code == "input-invalid"
    assert files_of(tree) == before


def test_a_tree_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TwinlockError) as caught:
        rootfs.install(tmp_path / "missing", options())
    assert caught.value.code == "input-wrong-type"


@pytest.mark.parametrize("link", ["usr/lib", "etc/twinlock"])
def test_a_link_that_leads_out_of_the_tree_is_not_followed(tree: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    where = tree / link
    if where.exists():
        where.rmdir()
    where.symlink_to(outside)
    with pytest.raises(TwinlockError) as caught:
        rootfs.install(tree, options())
    assert caught.value.code == "input-invalid"
    assert not any(outside.rglob("*.toml"))


def test_the_image_carries_what_devices_trust(tree: Path, tmp_path: Path) -> None:
    root, ca_file = tmp_path / "1.root.json", tmp_path / "ca.pem"
    root.write_text('{"signed": {}}')
    ca_file.write_text("-----BEGIN CERTIFICATE-----\n")
    director = tmp_path / "director.json"
    director.write_text('{"signed": {"director": 1}}')
    agent = replace(AGENT, root=root, director=director, ca_file=ca_file, device_id="dev-1", deadline_s=40)
    made = replace(options(), agent=agent)
    rootfs.install(tree, made)
    assert (tree / rootfs.ROOT).read_text() == root.read_text()
    assert (tree / rootfs.DIRECTOR).read_text() == director.read_text()
    assert (tree / rootfs.CA_FILE).read_text() == ca_file.read_text()
    parsed = agent_config.parse(tomllib.loads((tree / "etc/twinlock/agent.toml").read_text()))
    assert parsed.root == Path("/etc/twinlock/root.json")
    assert parsed.director == Path("/etc/twinlock/director.json")
    assert parsed.network.ca_file == Path("/etc/twinlock/ca.pem")
    assert (parsed.device_id, parsed.health.deadline_s) == ("dev-1", 40.0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device_id": "no such id!"}, "input-invalid"),
        ({"deadline_s": 0}, "input-invalid"),
        ({"deadline_s": 901}, "input-invalid"),
        ({"root": Path("/nowhere")}, "input-missing"),
        ({"root": Path("/dev")}, "input-wrong-type"),
        ({"director": Path("/nowhere")}, "input-missing"),
        ({"ca_file": Path("/nowhere")}, "input-missing"),
    ],
)
def test_what_devices_could_not_work_with_is_refused(
    tree: Path, changes: dict[str, object], code: str
) -> None:
    made = replace(options(), agent=replace(AGENT, **changes))  # type: ignore[arg-type]
    with pytest.raises(TwinlockError) as caught:
        rootfs.install(tree, made)
    assert caught.value.code == code


def test_certificates_that_are_no_text_are_refused(tree: Path, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.der"
    ca_file.write_bytes(b"\x30\x82\xff\xfe")
    with pytest.raises(TwinlockError) as caught:
        rootfs.install(tree, replace(options(), agent=replace(AGENT, ca_file=ca_file)))
    assert caught.value.code == "input-wrong-type"


def test_a_link_in_the_place_of_a_file_is_refused(tree: Path, tmp_path: Path) -> None:
    (tree / "usr/bin/twinlock-agent").symlink_to(tmp_path / "victim")
    with pytest.raises(TwinlockError, match="symbolic link"):
        rootfs.install(tree, options())
    assert not (tmp_path / "victim").exists()


def test_units_are_wanted_and_make_sense_to_systemd(tree: Path) -> None:
    rootfs.install(tree, options())
    folder = tree / rootfs.UNITS
    for name, target in {
        "twinlock-agent.timer": "timers.target",
        "twinlock-trial.service": "multi-user.target",
        "twinlock-enrol.service": "multi-user.target",
        "twinlock-grow.service": "multi-user.target",
        "twinlock-ssh-keys.service": "multi-user.target",
    }.items():
        assert (folder / f"{target}.wants" / name).resolve() == (folder / name).resolve()
    trial = folder / "boot-complete.target.requires/twinlock-trial.service"
    assert trial.resolve() == (folder / "twinlock-trial.service").resolve()
    assert "Before=boot-complete.target" in trial.read_text()
    for path in folder.glob("twinlock-*"):
        text = path.read_text()
        assert "@" not in text.replace("@system-service", "")


def test_what_a_tree_does_not_need_is_not_installed(tree: Path) -> None:
    (tree / "usr/sbin/sshd").unlink()
    done = rootfs.install(tree, options("data.grow = false"))
    assert not [name for name in done.files if "ssh" in name and "ssh-keys" not in name.split("/")[-1]]
    assert not [name for name in done.files if "grow" in name]


def test_the_builder_is_told_what_the_tree_lacks(tree: Path) -> None:
    (tree / "etc/ssh/ssh_host_rsa_key").write_text("secret")
    notes = " ".join(rootfs.install(tree, options()).notes)
    for word in ("python3", "host keys", "e2fsck", "vmlinuz", "sshd_config.d"):
        assert word in notes
    (tree / "usr/bin/python3").write_text("")
    (tree / "usr/bin" / f"python3.{sys.version_info.minor}").write_text("")
    for name in ("e2fsck", "resize2fs"):
        (tree / "usr/sbin" / name).write_text("")
    (tree / "boot/vmlinuz").write_text("")
    (tree / "etc/ssh/sshd_config").write_text("Include /etc/ssh/sshd_config.d/*.conf\n")
    (tree / "etc/ssh/ssh_host_rsa_key").unlink()
    assert [note for note in rootfs.install(tree, options()).notes if "root of trust" not in note] == []
    (tree / rootfs.ROOT).write_text("{}")
    assert rootfs.install(tree, options()).notes == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_packages_come_with_byte_code_that_holds_no_time(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "cache") if elsewhere else None)
    packages = tmp_path / "packages"
    (packages / "twinlock/agent").mkdir(parents=True)
    (packages / "twinlock/agent/__init__.py").write_text("X = 1\n")
    (packages / "twinlock/agent/old.pyc").write_text("old")
    made = replace(options(), packages=packages)
    rootfs.install(tree, made)
    where = tree / rootfs.PYTHON_PATH
    (compiled,) = where.rglob("*.pyc")
    first = compiled.read_bytes()
    assert int.from_bytes(first[4:8], "little") == 0b01  # hash-based, not checked at start
    os.utime(packages / "twinlock/agent/__init__.py", (1, 1))
    rootfs.install(tree, made)
    assert compiled.read_bytes() == first
    with pytest.raises(TwinlockError, match="does not hold the twinlock package"):
        rootfs.install(tree, replace(options(), packages=tmp_path))


@pytest.mark.parametrize("name", ["preinit", "ssh-keys"])
def test_shells_of_small_systems_read_the_scripts(tree: Path, name: str) -> None:
    rootfs.install(tree, options())
    for shell in (["sh"], ["busybox", "sh"], ["bash", "--posix"]):
        run([*shell, "-n", str(tree / rootfs.LIBRARY / name)], package="busybox-static")


def test_a_reset_is_asked_for_and_a_wrong_word_is_refused(tree: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "identity").mkdir(parents=True)
    rootfs.install(tree, replace(options(), data_mount=str(data)))
    script = tree / "usr/sbin/twinlock-reset"
    for wrong in ([], ["everything"], ["--help"]):
        done = subprocess.run(["sh", script, *wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "usage" in done.stderr
    assert not list((data / "identity").iterdir())
    subprocess.run(["sh", script, "all"], check=True, capture_output=True)
    assert (data / "identity/reset-request").read_text() == "all\n"
    assert [path.name for path in (data / "identity").iterdir()] == ["reset-request"]


def test_recovery_asks_soon_and_often(tree: Path) -> None:
    made = replace(options(), recovery=True)
    rootfs.install(tree, made)
    timer = (tree / "usr/lib/systemd/system/twinlock-agent.timer").read_text()
    assert "OnBootSec=10\n" in timer
    assert "OnUnitInactiveSec=120\n" in timer
    rootfs.install(tree, replace(made, agent=replace(AGENT, poll_s=60, jitter_s=5)))
    timer = (tree / "usr/lib/systemd/system/twinlock-agent.timer").read_text()
    assert "OnUnitInactiveSec=60\n" in timer
    assert "RandomizedDelaySec=5\n" in timer
    rootfs.install(tree, replace(made, recovery=False))
    assert "OnBootSec=900\n" in (tree / "usr/lib/systemd/system/twinlock-agent.timer").read_text()
