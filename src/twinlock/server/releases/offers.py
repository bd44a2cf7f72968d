"""Which payloads of a release are offered to a device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from twinlock.core import limits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.core.protocol import PayloadOffer
    from twinlock.server.devices.model import Facts

DELTA: Final = "delta"


def chosen_offers(offers: Sequence[PayloadOffer], facts: Facts) -> tuple[PayloadOffer, ...]:
    """The full payloads, and the deltas from the very image that the device says it runs, smallest first.

    A device that does not say that it knows deltas is offered none. At least one full payload is kept,
    whatever else there is: a device takes from it what a delta cannot give.
    """
    full = [offer for offer in offers if offer.kind == "full"]
    deltas = [
        offer
        for offer in offers
        if offer.base_sha256 is not None
        and offer.base_sha256.hex() == facts.image_sha256
        and DELTA in facts.abilities
    ]
    deltas.sort(key=lambda offer: (offer.size_bytes, offer.sha256))
    room = limits.PAYLOAD_OFFERS_MAX - 1
    return tuple([*full[:1], *deltas[:room], *full[1:]][: limits.PAYLOAD_OFFERS_MAX])
