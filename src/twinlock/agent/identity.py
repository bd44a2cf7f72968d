"""Who this device is: its own key, made here and never sent, and the id that goes with it.

The key is a file of the state folder, or with [identity] in the configuration on a PKCS#11 token. On a
token it is bound to the device's card (`memory.Card`): a key that is gone, or another one, is never taken for
this device without being told to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from twinlock.agent import memory
from twinlock.core.device_key import PEM_SIZE_BYTES_MAX, DeviceKey, DevicePublicKey, Signing, generate
from twinlock.core.errors import error

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.pkcs11_key import TokenKey
    from twinlock.agent.ports import Store

KEY: Final = "device.key"
ID_DIGITS: Final = 24


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's id and key; `fingerprint` is the key's, 64 hex digits."""

    device_id: str
    fingerprint: str
    key: Signing


def load(store: Store, config: Config) -> Identity:
    """The identity. Raises DeviceError `identity-missing` when there is no key, or it does not load.

    A token is asked nothing here once the device was enrolled; before, it raises what `pkcs11_key` names.
    """
    if config.identity is not None:
        card = memory.card(store)
        key = token_key(store, config)
        return _identity(config, key.fingerprint if card is None else card.fingerprint, key)
    pem = store.read(KEY, PEM_SIZE_BYTES_MAX)
    if pem is None:
        raise error("identity-missing", "this device has no key yet")
    own = DeviceKey(pem)
    return _identity(config, DevicePublicKey(own.public_pem).fingerprint, own)


def load_or_make(store: Store, config: Config, *, is_new: bool = False) -> Identity:
    """The identity; a key is made if there is none. A key that does not load is never replaced.

    On a token none is made for a device that was enrolled already, and no other key is taken: DeviceError
    `identity-lost`, unless a new identity is wanted (`is_new`).
    """
    if config.identity is not None:
        key = token_key(store, config, is_bound=not is_new)
        if is_new or memory.card(store) is None:
            key.make()
        return _identity(config, key.fingerprint, key)
    if is_new:
        hint = "move device.key out of the state folder: `twinlock-agent enrol` makes another then"
        raise error("input-invalid", "a new identity is made for keys on tokens alone", hint=hint)
    if store.read(KEY, PEM_SIZE_BYTES_MAX) is None:
        store.write(KEY, generate())
    return load(store, config)


def token_key(store: Store, config: Config, *, is_bound: bool = True) -> TokenKey:
    """The key on the configured token; bound to the device's card, if it has one. Nothing is asked yet."""
    from twinlock.agent.pkcs11_key import TokenKey

    assert config.identity is not None
    card = memory.card(store) if is_bound else None
    return TokenKey(store, config.identity, None if card is None else card.fingerprint)


def _identity(config: Config, fingerprint: str, key: Signing) -> Identity:
    return Identity(config.device_id or f"d-{fingerprint[:ID_DIGITS]}", fingerprint, key)
