"""Deltas at the server: to whom they are offered, and what the fleet is said to run."""

from __future__ import annotations

import random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.server.rig import Server
from twinlock.core import limits
from twinlock.core.protocol import PayloadOffer
from twinlock.server.devices.model import Facts
from twinlock.server.releases.offers import chosen_offers

BASE, OTHER = bytes([1]) * 32, bytes([2]) * 32
DEVICE = Facts(image_sha256=BASE.hex(), abilities=("full", "delta"))


def offer(size_bytes: int, base: bytes | None = None) -> PayloadOffer:
    kind: Any = "full" if base is None else "delta"
    digest = random.Random(f"{size_bytes}{base!r}").randbytes(32)
    return PayloadOffer(
        kind=kind, sha256=digest, size_bytes=size_bytes, index_size_bytes=10, base_sha256=base
    )


FULL, SMALL, LARGE = offer(1000), offer(10, BASE), offer(20, BASE)
FOREIGN = offer(5, OTHER)


def test_a_device_is_offered_the_deltas_from_its_own_image_smallest_first() -> None:
    assert chosen_offers([LARGE, FOREIGN, FULL, SMALL], DEVICE) == (FULL, SMALL, LARGE)


def test_who_does_not_know_deltas_or_its_image_gets_none() -> None:
    offers = [FULL, SMALL, FOREIGN]
    assert chosen_offers(offers, msgspec.structs.replace(DEVICE, abilities=("full",))) == (FULL,)
    assert chosen_offers(offers, msgspec.structs.replace(DEVICE, image_sha256="")) == (FULL,)


@given(st.integers(0, 30), st.integers(1, 30))
def test_there_is_a_full_payload_among_as_many_as_a_device_takes(deltas: int, full: int) -> None:
    offers = [
        *(offer(number + 1, BASE) for number in range(deltas)),
        *(offer(number + 99) for number in range(full)),
    ]
    found = chosen_offers(offers, DEVICE)
    assert len(found) == min(limits.PAYLOAD_OFFERS_MAX, deltas + full)
    assert found[0].kind == "full"
    assert set(found) <= set(offers)


def fleet(server: Server, **query: int) -> list[tuple[str, str, int]]:
    listed = "&".join(f"{name}={value}" for name, value in query.items())
    answer = server.operator("GET", f"/fleet/demo?{listed}").json()
    assert answer["product"] == "demo"
    return [(one["version"], one["image_sha256"], one["devices"]) for one in answer["images"]]


def test_what_the_fleet_runs_is_counted_most_first(server: Server) -> None:
    assert fleet(server) == []
    said = [("1.0", BASE), ("1.1", OTHER), ("1.1", OTHER), ("", None)]
    for number, (version, image) in enumerate(said):
        server.device(f"dev-{number}").poll(product="demo", version=version, image_sha256=image)
    waiting = server.device("dev-9")
    waiting.poll(product="demo", version="1.0", image_sha256=BASE)
    server.operator("POST", "/devices/dev-9/reject")
    server.device("dev-8").poll(product="other", version="1.0", image_sha256=BASE)
    server.stop()
    server.start()
    assert fleet(server) == [("1.1", OTHER.hex(), 2), ("1.0", BASE.hex(), 1)]
    assert fleet(server, limit=1) == [("1.1", OTHER.hex(), 2)]


def test_a_product_that_is_none_is_refused(server: Server) -> None:
    assert server.operator("GET", "/fleet/No%20Product").status_code == 400
