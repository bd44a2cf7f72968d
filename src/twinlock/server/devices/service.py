"""What an operator does to devices; each action and its entry in the audit log are one transaction."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from twinlock.core.errors import error
from twinlock.core.names import check_device_id, check_sha256_hex
from twinlock.server.audit.chain import append
from twinlock.server.devices.model import Device, Status

if TYPE_CHECKING:
    from twinlock.server.ports import Transaction


def known(transaction: Transaction, device_id: str, *, lock: bool = False) -> Device:
    """The device. Raises InputError `not-found`."""
    found = transaction.devices.get(check_device_id(device_id), lock=lock)
    if found is None:
        raise error("not-found", f"no device is called {device_id!r}")
    return found


def decide(transaction: Transaction, device_id: str, status: Status, actor: str, now_ms: int) -> Device:
    """Accepts or rejects a device, whatever it was before; takes effect at its next request.

    Deciding the same again changes nothing. Raises InputError `not-found`.
    """
    device = known(transaction, device_id, lock=True)
    if device.status is status:
        return device
    decided = replace(device, status=status, decided_ms=now_ms)
    transaction.devices.replace(decided)
    detail = f"was {device.status}; key {device.fingerprint}"
    append(transaction.audit, now_ms, actor, f"device-{status}", device_id, detail)
    return decided


def preauthorise(
    transaction: Transaction, device_id: str, fingerprint: str, actor: str, now_ms: int
) -> Device | None:
    """Names the key (SHA-256 of its DER form, hex) that this id will enrol with; returns the device if known.

    A device that waits with that very key is accepted at once. For a known device with another key this is
    how the operator lets it come back with a new one: the old key serves until the new one enrols.
    """
    check_device_id(device_id)
    check_sha256_hex(fingerprint)
    device = transaction.devices.get(device_id, lock=True)
    append(transaction.audit, now_ms, actor, "device-preauthorised", device_id, f"key {fingerprint}")
    if device is not None and device.fingerprint == fingerprint:
        return decide(transaction, device_id, Status.ACCEPTED, actor, now_ms)
    transaction.enrolment.preauthorise(device_id, fingerprint, now_ms)
    return device
