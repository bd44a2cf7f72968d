"""Boot scripts and script images, as far as they can be judged without a loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from twinlock.core.errors import TwinlockError
from twinlock.provision import layout, loader_grub, loader_uboot
from twinlock.provision.render import render
from twinlock.provision.tools import run
from twinlock.provision.uimage import script_image


def plan_of(text: str = "") -> layout.Plan:
    return layout.plan(layout.parse_spec(text))


def test_mkimage_makes_the_same_script_image(tmp_path: Path) -> None:
    text = loader_uboot.script(plan_of())
    source, out = tmp_path / "boot.cmd", tmp_path / "boot.scr"
    source.write_text(text, "ascii")
    run(
        [
            *("mkimage", "-A", "arm64", "-O", "linux", "-T", "script", "-C", "none", "-n", "twinlock"),
            *("-d", str(source), str(out)),
        ],
        package="u-boot-tools",
        environment={"SOURCE_DATE_EPOCH": "0"},
    )
    assert script_image(text) == out.read_bytes()


@pytest.mark.parametrize("script", ["ü", "a\0b", "a\r\n", "a" * 65537])
def test_a_script_that_uboot_cannot_read_is_refused(script: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        script_image(script)
    assert caught.value.code == "input-invalid"


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(TwinlockError, match="architecture"):
        script_image("true", architecture="z80")


@pytest.mark.parametrize("render_script", [loader_uboot.script, loader_grub.script])
@pytest.mark.parametrize(
    "text", ["", "table = 'mbr'", "[recovery]\nsize = 0", "name = 'x'\n[loader]\ninitrd = '/i'"]
)
def test_every_place_of_a_script_is_filled(render_script: type, text: str) -> None:
    plan = plan_of(text)
    script = render_script(plan)
    assert "@" not in script.replace("@/", "")
    for role in ("a", "b"):
        assert f"root=PARTUUID={plan.need(role).partuuid} twinlock.slot={role}" in script


def test_no_words_of_a_script_are_commands() -> None:
    """A separator in a text that is not quoted would end it, and run the rest."""
    for line in loader_uboot.script(plan_of()).splitlines():
        words = line.strip()
        if words.startswith("echo ") and not words.startswith("echo '"):
            assert not set(words) & set(";&|<>"), line


def test_a_script_never_saves_before_it_has_counted_down() -> None:
    for script in (loader_uboot.script(plan_of()), loader_grub.script(plan_of())):
        lines = [line.strip() for line in script.splitlines()]
        save = next(
            i for i, line in enumerate(lines) if "write ${tl_addr}" in line or line.startswith("if save_env")
        )
        count = next(
            i for i, line in enumerate(lines) if "set tl_left=6" in line or "setenv tl_left 6" in line
        )
        boot = next(
            i for i, line in enumerate(lines) if line in ("run tl_boot_${tl_trying}", 'tl_boot "$tl_trying"')
        )
        assert count < save < boot


def test_uboot_reads_the_record_where_the_plan_puts_it() -> None:
    plan = plan_of()
    script = loader_uboot.script(plan)
    assert f"setenv tl_blk {plan.record_offsets[0] // 512:x}\n" in script
    assert f"setenv tl_blk {plan.record_offsets[1] // 512:x}\n" in script
    large = plan_of("sector_size = 4096")
    assert f"setenv tl_blk {large.record_offsets[1] // 4096:x}\n" in loader_uboot.script(large)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("", "booti ${kernel_addr_r} - ${fdtcontroladdr}"),
        ("[loader]\nboot_command = 'bootm'\nkernel = '/boot/fit'", "bootm ${kernel_addr_r};"),
        (
            "[loader]\nboot_command = 'bootz'\ndevice_tree = '/boot/dtb'\ninitrd = '/boot/i'",
            "bootz ${kernel_addr_r} ${ramdisk_addr_r}:${filesize} ${fdt_addr_r}",
        ),
    ],
)
def test_uboot_boots_with_what_the_description_names(text: str, command: str) -> None:
    assert command in loader_uboot.script(plan_of(text))


def test_grub_loads_what_the_description_names() -> None:
    script = loader_grub.script(plan_of("[loader]\ndevice_tree = '/boot/dtb'\ninitrd = '/boot/i'"))
    wanted = 'if devicetree "${tl_from}/boot/dtb"; then if initrd "${tl_from}/boot/i"; then boot; fi; fi'
    assert wanted in script
    assert "||" not in script.split("set pager", 1)[1]
    assert "&&" not in script.split("set pager", 1)[1]


def test_grub_reads_the_script(tmp_path: Path) -> None:
    path = tmp_path / "grub.cfg"
    path.write_text(loader_grub.script(plan_of("table = 'mbr'")), "ascii")
    run(["grub-script-check", str(path)], package="grub-common")


def test_the_root_is_read_only_and_never_mended() -> None:
    args = loader_uboot.kernel_args(layout.LoaderSpec(kernel_args="  console=x   panic=1 "))
    assert args == "console=x panic=1 oops=panic ro rootwait fsck.mode=skip init=/usr/lib/twinlock/preinit"
    assert "panic=10 oops=panic" in loader_uboot.kernel_args(layout.LoaderSpec())


@pytest.mark.parametrize(("template", "values"), [("@A@", {}), ("x", {"A": "1"}), ("@A@@B@", {"A": "1"})])
def test_a_place_without_a_value_is_a_fault(template: str, values: dict[str, str]) -> None:
    with pytest.raises(TwinlockError) as caught:
        render(template, values)
    assert caught.value.code == "internal"


def test_a_value_is_never_read_for_places() -> None:
    assert render("@A@ @B@", {"A": "@B@", "B": "@A@"}) == "@B@ @A@"


def test_an_unknown_grub_target_is_refused() -> None:
    with pytest.raises(TwinlockError, match="GRUB target"):
        loader_grub.core_image("vax")
