"""Whether this device takes a release: pure, from what is signed of it and what the device knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.core.errors import error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from twinlock.agent.memory import Failed
    from twinlock.core.manifest import Claims


def check_fits(
    claims: Claims,
    *,
    hardware: str,
    product: str,
    floor: int,
    inactive: str | None,
    inactive_size_bytes: int,
    what: str,
) -> None:
    """Raises CompatibilityError unless the signed claims are for this device, and go into its free slot.

    `hardware-mismatch`, `product-mismatch`, `release-older`, `image-too-large`; DeviceError `boot-refused`
    when no slot is free.
    """
    if hardware not in claims.hardware:
        names = ", ".join(claims.hardware[:8])
        raise error("hardware-mismatch", f"{what} is for {names}, this device is {hardware}")
    if claims.product != product:
        raise error("product-mismatch", f"{what} is of {claims.product}, this device runs {product}")
    if claims.counter < floor:
        raise error("release-older", f"{what} has counter {claims.counter}, this device accepts {floor} up")
    if inactive is None:
        raise error(
            "boot-refused",
            "no slot is free: the bootloader started another slot than the committed one",
            hint="reboot; if it stays so, the committed slot does not load",
        )
    if claims.image_size_bytes > inactive_size_bytes:
        raise error(
            "image-too-large",
            f"{what} has {claims.image_size_bytes} bytes, slot {inactive} {inactive_size_bytes}",
        )


def check_assignment_is_new(failures: Iterable[Failed], assignment_id: str) -> None:
    """Raises CompatibilityError `release-failed-before` when this very assignment ended badly before."""
    for failed in failures:
        if failed.assignment_id == assignment_id:
            raise error("release-failed-before", f"this assignment failed before: {failed.code}")


def check_release_is_new(failures: Iterable[Failed], manifest_sha256: bytes, what: str) -> None:
    """Raises CompatibilityError `release-failed-before` when this very release was rolled back before."""
    for failed in failures:
        if failed.manifest_sha256 == manifest_sha256:
            raise error("release-failed-before", f"{what} failed on this device before: {failed.code}")
