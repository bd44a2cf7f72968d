"""Attacks by way of a fleet's CA and of what devices send packed, cases 9 and 41: against the real server."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from tests.attacks.server_scene import ServerScene, refused, server_scene
from tests.unit.server.rig import FakeDevice
from tests.unit.server.test_evidence import piece, send
from tests.unit.server.test_fleet_ca import Authority, tell, time_of
from twinlock.core.limits import MIB
from twinlock.core.zstd import CompressionParameter, ZstdCompressor


def with_ca(server: ServerScene) -> Authority:
    """The server takes devices that this CA certified, and no others without a token."""
    authority = Authority(time_of(server))
    tell(server, authority)
    return authority


def test_case_09_a_bomb_in_evidence(tmp_path: Path) -> None:
    """A device's own, signed and small, in a frame that any reader takes: it would be 256 MiB of text."""
    with server_scene(tmp_path) as server:
        device = server.device()
        before = server.state()
        options: dict[int, int] = {
            CompressionParameter.window_log: 17,
            CompressionParameter.content_size_flag: 0,
        }
        packer = ZstdCompressor(options=options)
        bomb = piece(data=packer.compress(bytes(256 * MIB)) + packer.flush())
        tracemalloc.start()
        try:
            refused(send(device, bomb), 400, "request-malformed")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 32 * MIB
        assert server.state() == before


def test_case_41_a_certificate_of_another_device(tmp_path: Path) -> None:
    with server_scene(tmp_path) as server:
        authority = with_ca(server)
        thief = FakeDevice(server, "dev-2")
        before = server.state()
        refused(thief.enrol(certificate=authority.device("dev-1", thief.key)), 409, "certificate-refused")
        assert server.state() == before


def test_case_41_a_certificate_of_another_key(tmp_path: Path) -> None:
    """It was read off the wire; the key that it is for was not."""
    with server_scene(tmp_path) as server:
        authority = with_ca(server)
        owner, thief = FakeDevice(server, "dev-1"), FakeDevice(server, "dev-1")
        before = server.state()
        refused(thief.enrol(certificate=authority.device("dev-1", owner.key)), 409, "certificate-refused")
        assert server.state() == before


def test_case_41_a_certificate_by_a_stranger(tmp_path: Path) -> None:
    """A CA of the same name."""
    with server_scene(tmp_path) as server:
        with_ca(server)
        stranger, thief = Authority(time_of(server)), FakeDevice(server, "dev-1")
        before = server.state()
        refused(thief.enrol(certificate=stranger.device("dev-1", thief.key)), 409, "certificate-refused")
        assert server.state() == before


def test_case_41_a_certificate_of_a_rejected_device(tmp_path: Path) -> None:
    """The CA's word outlives the device: what the operator has taken away, it does not give back."""
    with server_scene(tmp_path) as server:
        authority = with_ca(server)
        device = FakeDevice(server, "dev-1")
        certificate = authority.device("dev-1", device.key)
        assert device.enrol(certificate=certificate).json() == {"status": "accepted"}
        assert server.operator("POST", "/devices/dev-1/reject").status_code == 200
        before = server.state()
        assert device.enrol(certificate=certificate).json() == {"status": "rejected"}
        refused(device.open_session(device.challenge()), 403, "enrolment-rejected")
        assert server.state() == before
