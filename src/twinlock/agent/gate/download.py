"""A probe download: one part of the payload that this release came as, fetched anew and checked.

What the part decodes to is a segment of the running image, whose hash is signed in the manifest: so the probe
takes the whole way that the next release will take (session, ranges, part, decoder, signed hash) and needs
nothing on the server that is not there already. The smallest part is taken; nothing is kept of it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from twinlock.agent import session, transfer
from twinlock.agent.fetch import Payload, Source, Tally
from twinlock.core import protocol
from twinlock.core.errors import error
from twinlock.core.payload import container, parts

if TYPE_CHECKING:
    from twinlock.agent.config import Config
    from twinlock.agent.plan import Plan
    from twinlock.agent.ports import Ports
    from twinlock.core.manifest import Manifest
    from twinlock.core.protocol import PayloadOffer


def probe(ports: Ports, config: Config, plan: Plan, manifest: Manifest) -> bool:
    """Fetches and checks one part. False when there is none to fetch: no full payload, or all of it zeros.

    Raises what a download raises: TransportError, TrustError (`payload-part-hash`, `segment-hash`),
    PolicyError.
    """
    offer = next((one for one in plan.payloads if one.kind == "full"), None)
    if offer is None:
        return False
    payload = _payload(ports, config, plan, offer)
    index = transfer.load_index(ports.store, offer) or _fetch_index(payload, offer)
    container.check_fit(index, manifest, offer.size_bytes)
    coded = [number for number, part in enumerate(index.parts) if isinstance(part, parts.Zstd)]
    if not coded:
        return False
    number = min(coded, key=lambda one: index.parts[one].length)
    part, start = index.parts[number], index.offsets()[number]
    encoded = payload.read(start, start + part.length)
    parts.check_encoded(part, encoded, number)
    data = parts.decode_part(part, encoded, manifest.segment_length_bytes(number), number)
    if hashlib.sha256(data).digest() != manifest.segment_sha256(number):
        raise error("segment-hash", f"segment {number} of {manifest.name} is not the signed one")
    return True


def _payload(ports: Ports, config: Config, plan: Plan, offer: PayloadOffer) -> Payload:
    sha256 = offer.sha256.hex()
    url = f"{plan.server.rstrip('/')}{protocol.PREFIX}/payloads/{sha256}"
    opened = session.load(ports.store, ports.clock.now_s())
    credentials = session.SessionCredentials(ports, plan.token if opened is None else opened.token)
    source = Source(url, sha256, offer.size_bytes)
    return Payload(ports.network, ports.clock, ports.random, config.network, source, credentials, Tally())


def _fetch_index(payload: Payload, offer: PayloadOffer) -> container.Index:
    """The index, when the one that the install kept is gone."""
    size_bytes = transfer.tail_size_bytes(offer)
    return transfer.decode_tail(payload.read(offer.size_bytes - size_bytes, offer.size_bytes))
