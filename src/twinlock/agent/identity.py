"""Who this device is: its own key, made here and never sent, and the id that goes with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.core.device_key import PEM_SIZE_BYTES_MAX, DeviceKey, DevicePublicKey, generate
from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.ports import Store

KEY: Final = "device.key"
ID_DIGITS: Final = 24


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's id and key; `fingerprint` is the key's, 64 hex digits."""

    device_id: str
    fingerprint: str
    key: DeviceKey


def load(store: Store, config: Config) -> Identity:
    """The identity. Raises DeviceError `identity-missing` when there is no key, or it does not load."""
    pem = store.read(KEY, PEM_SIZE_BYTES_MAX)
    if pem is None:
        raise error("identity-missing", "this device has no key yet")
    key = DeviceKey(pem)
    fingerprint = DevicePublicKey(key.public_pem).fingerprint
    return Identity(config.device_id or f"d-{fingerprint[:ID_DIGITS]}", fingerprint, key)


def load_or_make(store: Store, config: Config) -> Identity:
    """The identity; a key is made if there is none. A key that does not load is never replaced."""
    if store.read(KEY, PEM_SIZE_BYTES_MAX) is None:
        store.write(KEY, generate())
    return load(store, config)
