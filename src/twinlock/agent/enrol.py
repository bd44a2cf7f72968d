"""`twinlock-agent enrol`: makes this device known to its server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import msgspec

from twinlock.agent import config as configs
from twinlock.agent import identity, lock, memory, session
from twinlock.agent.api import DeviceApi
from twinlock.agent.clock import SystemClock, SystemRandom
from twinlock.agent.http import HttpNetwork
from twinlock.agent.store import FolderStore
from twinlock.core import device_key, limits, protocol
from twinlock.core.durable import read_bounded
from twinlock.core.errors import error

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from twinlock.agent.config import Config
    from twinlock.agent.identity import Identity
    from twinlock.agent.ports import Clock, Network, Random, Store


def enrol(
    network: Network,
    store: Store,
    clock: Clock,
    random: Random,
    config: Config,
    token: str | None,
    *,
    is_new: bool = False,
) -> tuple[Identity, protocol.EnrolAnswer]:
    """Makes the key if there is none and asks the server; may be repeated, while pending and later.

    With `certificate` in the configuration its PEM file goes along: a fleet's CA may accept in the operator's
    place. With `is_new` a device whose token lost its key gets another one. Raises PolicyError
    `enrolment-conflict`, `certificate-refused`, TransportError, DeviceError, and InputError for a certificate
    that cannot be read.
    """
    own = identity.load_or_make(store, config, is_new=is_new)
    card = memory.Card(device_id=own.device_id, fingerprint=own.fingerprint)
    if memory.card(store) not in (None, card):
        store.remove(session.SESSION)  # it speaks for who this device was
    store.write(memory.CARD_FILE, msgspec.json.encode(card))
    public_key = own.key.public_pem
    proof = own.key.sign(device_key.enrolment_bytes(own.device_id, config.hardware, public_key))
    request = protocol.EnrolRequest(
        device_id=own.device_id,
        hardware=config.hardware,
        public_key=public_key,
        proof=proof,
        token=token,
        certificate=_certificate(config),
    )
    api = DeviceApi(network, clock, random, config.network, config.server)
    return own, api.call("enrol", request, protocol.EnrolAnswer)


def _certificate(config: Config) -> str | None:
    if config.certificate is None:
        return None
    data = read_bounded(config.certificate, limits.CERTIFICATES_SIZE_BYTES_MAX, "certificate")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as problem:
        raise error("input-unreadable", f"certificate {config.certificate} is not PEM") from problem


def command(config_path: Path, args: argparse.Namespace) -> int:
    """Exit code 0 when accepted or waiting for the operator; `enrolment-rejected` otherwise."""
    config = configs.load(config_path)
    clock = SystemClock()
    network, store = HttpNetwork(clock, config.network), FolderStore(config.state)
    with lock.held(config.state, clock):
        own, answer = enrol(
            network, store, clock, SystemRandom(), config, args.token, is_new=args.new_identity
        )
    if answer.status == "rejected":
        raise error("enrolment-rejected", f"{config.server} rejected device {own.device_id}")
    if args.json:
        shown = {"device_id": own.device_id, "fingerprint": own.fingerprint, "status": answer.status}
        print(json.dumps({"version": 1, **shown}))
        return 0
    print(f"device {own.device_id}: {answer.status}")
    print(f"key fingerprint: {own.fingerprint}")
    if answer.status == "pending":
        print(f"the operator accepts it with: twinlock device accept {own.device_id}")
    return 0
