"""The lab's own kernel, before any compiler runs: fragments that agree, refusals, its name in the cache."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from twinlock.core.errors import DeviceError, InputError
from twinlock.lab.qemu import kernel
from twinlock.lab.qemu.kernel import Built, Source, fragments, merged, offered, recipe, require, unmet
from twinlock.provision import kernel_check

TOLD = (
    "'http://mirror.example/pool/main/l/linux/linux-source-6.1_6.1.192-2_all.deb'"
    " linux-source-6.1_6.1.192-2_all.deb 139331676 SHA256:ae95fe\n"
)
SOURCE = Source("6.1.192-2", "SHA256:ae95fe")
COMPILER = "gcc (Debian 12.2.0-14) 12.2.0"


def config(**other: str) -> bytes:
    """A configuration as the fragments want it, but for these options."""
    values = {option.name: option.value for option in merged(fragments())} | other
    lines = [
        f"# CONFIG_{name} is not set" if value == "n" else f"CONFIG_{name}={value}"
        for name, value in values.items()
    ]
    return "\n".join(lines).encode("ascii")


def test_the_board_comes_first_and_every_shipped_fragment_is_in() -> None:
    assert list(fragments()) == ["board", *kernel_check.fragment_names()]
    names = {option.name for option in merged(fragments())}
    assert names >= {"BLK_DEV_NVME", "WATCHDOG", "EFI_STUB", "MMC_BLOCK", "ZRAM", "TCP_CONG_BBR", "OF"}


def test_fragments_that_contradict_each_other_are_refused() -> None:
    texts = {"one": "# Some reason.\nCONFIG_X=y\n", "two": "# Another reason.\n# CONFIG_X is not set\n"}
    with pytest.raises(DeviceError, match="fragment one wants CONFIG_X=y, fragment two wants n") as caught:
        merged(texts)
    assert caught.value.code == "kernel-options"
    assert len(merged({"one": texts["one"], "three": texts["one"]})) == 2


def test_what_kconfig_took_over_is_accepted() -> None:
    require(config(), merged(fragments()))


@pytest.mark.parametrize(
    ("name", "value", "fragment"),
    [
        ("PSTORE", "n", "update: required"),
        ("SQUASHFS", "n", "update: wanted"),
        ("PANIC_TIMEOUT", "0", "update: required"),
        ("BLK_DEV_NVME", "n", "board: required"),
        ("SLUB_CPU_PARTIAL", "y", "low-memory: required"),
    ],
)
def test_an_option_that_kconfig_dropped_is_named_with_its_fragment(
    name: str, value: str, fragment: str
) -> None:
    changed = config(**{name: value})
    with pytest.raises(DeviceError, match=f"{fragment}: CONFIG_{name}=") as caught:
        require(changed, merged(fragments()))
    assert caught.value.code == "kernel-options"
    assert "1 options" in str(caught.value)


def test_only_what_no_x86_kernel_has_may_be_missing() -> None:
    dropped = config(**dict.fromkeys(kernel.NOT_ON_X86, "n"))
    assert unmet(dropped, merged(fragments())) == []
    everything = config(**{option.name: "0" for option in merged(fragments())})
    missing = {finding.option.name for finding in unmet(everything, merged(fragments()))}
    assert missing == {option.name for option in merged(fragments())} - kernel.NOT_ON_X86


def test_the_version_and_the_hash_are_apts() -> None:
    assert offered(TOLD) == SOURCE
    assert offered("Get:1 something\n" + TOLD) == SOURCE
    assert offered(TOLD.replace("6.1.192-2_all.deb ", "1%3a6.1.192-2_all.deb ")).version == "1:6.1.192-2"


@pytest.mark.parametrize(
    "told", ["", "E: Unable to locate package\n", TOLD.replace("SHA256:", ""), "'x' y.deb 7 SHA256:00\n"]
)
def test_a_machine_whose_apt_has_no_such_source_is_told_so(told: str) -> None:
    with pytest.raises(DeviceError, match="linux-source") as caught:
        offered(told)
    assert caught.value.code == "package-missing"


def test_another_source_compiler_or_fragment_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {
        recipe(SOURCE, COMPILER),
        recipe(Source("6.1.193-1", SOURCE.hash), COMPILER),
        recipe(Source(SOURCE.version, "SHA256:00"), COMPILER),
        recipe(SOURCE, "gcc 14"),
    }
    monkeypatch.setattr(kernel, "BOARD_FRAGMENT", kernel.BOARD_FRAGMENT + "CONFIG_Y=y\n")
    assert len(names | {recipe(SOURCE, COMPILER)}) == 5
    assert recipe(SOURCE, COMPILER) == recipe(SOURCE, COMPILER)


def test_another_architecture_is_refused() -> None:
    with pytest.raises(InputError, match="aarch64") as caught:
        kernel.need_host("aarch64")
    assert caught.value.code == "input-invalid"


@pytest.mark.parametrize(
    "thing", [("no-such-program", "some-package"), ("/no/such/header.h", "some-package")]
)
def test_what_is_not_installed_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, thing: tuple[str, str]
) -> None:
    monkeypatch.setattr(kernel, "_NEEDED", (thing,))
    with pytest.raises(DeviceError, match=thing[0]) as caught:
        kernel.need_host("x86_64")
    assert caught.value.code == "package-missing"
    assert caught.value.hint == "apt-get install some-package"


class Tools:
    """Stands for Debian's programs: it leaves the files that they would leave."""

    def __init__(self, config: bytes) -> None:
        self.config = config
        self.calls: list[list[str]] = []

    def __call__(self, arguments: list[str], *, folder: Path | None = None, **_: object) -> str:
        self.calls.append(arguments)
        if "--print-uris" in arguments:
            return TOLD
        if arguments[0] == "gcc":
            return COMPILER + "\nmore words\n"
        if arguments[0] == "apt-get":
            assert folder is not None
            (folder / "linux-source-6.1_6.1.192-2_all.deb").write_bytes(b"package")
        elif arguments[0] == "dpkg-deb":
            (Path(arguments[-1]) / "usr/src").mkdir(parents=True)
            (Path(arguments[-1]) / "usr/src/linux-source-6.1.tar.xz").write_bytes(b"source")
        elif arguments[0] == "sh":
            (Path(arguments[arguments.index("-O") + 1]) / ".config").write_bytes(self.config)
        elif arguments[0] == "nice":
            (work,) = [Path(word[2:]) for word in arguments if word.startswith("O=")]
            (work / "arch/x86/boot").mkdir(parents=True)
            (work / "arch/x86/boot/bzImage").write_bytes(b"kernel")
        return ""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tools:
    made = Tools(config())
    monkeypatch.setenv("TWINLOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kernel, "run", made)
    monkeypatch.setattr(kernel, "_NEEDED", ())
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return made


def test_a_kernel_is_built_once_and_then_comes_from_the_cache(tools: Tools, tmp_path: Path) -> None:
    own = kernel.own_kernel()
    assert own.image.read_bytes() == b"kernel"
    assert own.config.read_bytes() == tools.config
    assert (own.built.source, own.built.compiler, own.built.size_bytes) == ("6.1.192-2", COMPILER, 6)
    assert own.built.cpu_s >= 0
    assert ["apt-get", "download", "--quiet", "linux-source-6.1=6.1.192-2"] in tools.calls
    before = len(tools.calls)
    assert kernel.own_kernel() == own
    assert [call[0] for call in tools.calls[before:]] == ["apt-get", "gcc"]  # asked, and nothing fetched
    left = [path.name for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]
    assert left == [own.image.parent.name]


def test_a_kernel_without_what_the_fragments_want_is_not_even_compiled(tools: Tools, tmp_path: Path) -> None:
    tools.config = config(PSTORE="n")
    with pytest.raises(DeviceError, match="CONFIG_PSTORE=y"):
        kernel.own_kernel()
    assert "nice" not in [call[0] for call in tools.calls]
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_the_note_in_the_cache_is_strict() -> None:
    note = msgspec.json.encode(Built("1", COMPILER, 1.5, 6))
    assert msgspec.json.decode(note, type=Built) == Built("1", COMPILER, 1.5, 6)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(note[:-1] + b',"x":1}', type=Built)
