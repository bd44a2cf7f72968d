"""Publishing: checked as a device would before a byte is sent, resumed after failures, nothing sent twice."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from tests.unit.cli import operator_server as fake
from tests.unit.cli.operator_server import TOKEN, Fault, OperatorServer
from tests.unit.publish.tools import NOW, Holders, ceremony, make_release, sign, simple_repository
from twinlock.cli.api import Api
from twinlock.core.errors import TwinlockError, error
from twinlock.publish import releases, signing, upload
from twinlock.publish.repository import open_repository


def refusal(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    return caught.value


@pytest.fixture
def server() -> Iterator[OperatorServer]:
    with OperatorServer().running() as running:
        yield running


@pytest.fixture
def repo(tmp_path: Path, rng: random.Random) -> Path:
    made, holders = simple_repository(tmp_path)
    sign(made, holders, make_release(tmp_path, rng), "main")
    return made


class Pauses:
    """Notes the pauses instead of waiting."""

    def __init__(self, rng: random.Random) -> None:
        self.waits_s: list[float] = []
        self.heard: list[str] = []
        self.retry = upload.Retry(
            sleep=self.waits_s.append, rng=rng, heard=lambda problem, wait_s: self.heard.append(problem.code)
        )


def publish(
    repo: Path, server: OperatorServer, pauses: Pauses, days: int = 0, told: list[int] | None = None
) -> list[upload.Sent]:
    with open_repository(repo, write=False) as repository:
        wanted = releases.list_releases(repository)
        advance = (told if told is not None else []).append
        return upload.publish(
            repository, Api(server.address, TOKEN), wanted, NOW + timedelta(days=days), pauses.retry, advance
        )


def test_a_release_is_sent_once(repo: Path, server: OperatorServer, rng: random.Random) -> None:
    told: list[int] = []
    (sent,) = publish(repo, server, Pauses(rng), told=told)
    (path,) = (repo / "payloads").iterdir()
    size_bytes = path.stat().st_size
    assert (sent.name, sent.new, sent.sent_bytes, sent.spared_bytes) == (
        "demo/1.0.manifest",
        True,
        size_bytes,
        0,
    )
    assert server.payloads == {path.stem: path.read_bytes()}
    assert list(server.releases) == ["demo/1.0"]
    assert sum(told) == 2 * size_bytes  # checked, then sent
    (again,) = publish(repo, server, Pauses(rng))
    assert (again.new, again.sent_bytes, again.spared_bytes) == (False, 0, size_bytes)
    assert [line for line in server.asked if line.startswith("PUT")] == [f"PUT /api/v1/payloads/{path.stem}"]


def test_the_metadata_alone_can_be_published(repo: Path, server: OperatorServer, rng: random.Random) -> None:
    with open_repository(repo, write=False) as repository:
        upload.publish(repository, Api(server.address, TOKEN), [], NOW, Pauses(rng).retry)
    assert server.metadata is not None
    assert set(server.metadata) == {"roots", "timestamp", "snapshot", "targets"}
    assert server.payloads == {}


@pytest.mark.parametrize(
    ("method", "fault", "code"),
    [
        ("HEAD", fake.busy, "server-busy"),
        ("PUT", fake.broken, "server-error"),
        ("PUT", fake.hang_up_after_a_part, "connection-lost"),
        ("POST", fake.hang_up, "connection-lost"),
        ("POST", fake.busy, "server-busy"),
    ],
)
def test_transport_failures_are_met_by_trying_again(
    repo: Path, server: OperatorServer, rng: random.Random, method: str, fault: Fault, code: str
) -> None:
    server.fail(method, fault, times=3)
    pauses, told = Pauses(rng), list[int]()
    (sent,) = publish(repo, server, pauses, told=told)
    assert sent.new
    assert pauses.heard == [code] * 3
    assert [0 <= wait_s <= bound for wait_s, bound in zip(pauses.waits_s, (1, 2, 4), strict=True)] == [
        True
    ] * 3
    (path,) = (repo / "payloads").iterdir()
    assert server.payloads == {path.stem: path.read_bytes()}
    assert sum(told) == 2 * path.stat().st_size  # a repeated upload does not overfill the bar


def test_tries_end(repo: Path, server: OperatorServer, rng: random.Random) -> None:
    server.fail("PUT", fake.hang_up_after_a_part, times=5)
    pauses = Pauses(rng)
    assert refusal(lambda: publish(repo, server, pauses)).code == "connection-lost"
    assert len(pauses.waits_s) == 4
    assert server.releases == {}
    publish(repo, server, pauses)  # and nothing is lost


def test_pauses_are_bounded(rng: random.Random) -> None:
    pauses = Pauses(rng)
    retry = upload.Retry(sleep=pauses.waits_s.append, tries=20, rng=rng)

    def step() -> None:
        raise error("server-busy", "no")

    refusal(lambda: upload.again(step, retry))
    assert len(pauses.waits_s) == 19
    assert max(pauses.waits_s) <= upload.WAIT_S_MAX
    assert max(pauses.waits_s[-10:]) > upload.WAIT_S_MAX / 2


@pytest.mark.parametrize("fault", [fake.full, fake.elsewhere])
def test_other_failures_are_not_tried_again(
    repo: Path, server: OperatorServer, rng: random.Random, fault: Fault
) -> None:
    server.fail("PUT", fault)
    pauses = Pauses(rng)
    refusal(lambda: publish(repo, server, pauses))
    assert pauses.waits_s == []


def test_a_server_that_is_not_there_is_told_at_once(repo: Path, rng: random.Random) -> None:
    server = OperatorServer()
    with server.running():
        pass
    pauses = Pauses(rng)
    assert refusal(lambda: publish(repo, server, pauses)).code == "server-unreachable"
    assert pauses.waits_s == []


# Nothing leaves that a device would refuse


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("pattern", "codes"),
    [
        ("payloads/*.payload", {"payload-hash"}),
        ("targets/demo/*.manifest", {"manifest-hash"}),
        ("releases/demo/1.0.json", {"input-wrong-type", "manifest-hash", "payload-hash", "input-missing"}),
    ],
)
def test_damage_on_disk_is_found_before_anything_is_sent(
    repo: Path, server: OperatorServer, rng: random.Random, pattern: str, codes: set[str]
) -> None:
    (path,) = repo.glob(pattern)
    damage(path)
    assert refusal(lambda: publish(repo, server, Pauses(rng))).code in codes
    assert server.asked == []


@pytest.mark.parametrize(
    "pattern", ["payloads/*.payload", "targets/demo/*.manifest", "releases/demo/1.0.json"]
)
def test_a_missing_file_is_found_before_anything_is_sent(
    repo: Path, server: OperatorServer, rng: random.Random, pattern: str
) -> None:
    (path,) = repo.glob(pattern)
    path.unlink()
    problem = refusal(lambda: publish(repo, server, Pauses(rng)))
    assert (problem.code, path.name in problem.what) == ("input-missing", True)
    assert server.asked == []


def test_a_record_of_another_manifest_is_found(
    repo: Path, server: OperatorServer, rng: random.Random
) -> None:
    path = repo / "releases/demo/1.0.json"
    record = json.loads(path.read_bytes())
    path.write_text(json.dumps({**record, "manifest_sha256": "0" * 64}))
    assert refusal(lambda: publish(repo, server, Pauses(rng))).code == "manifest-hash"
    assert server.asked == []


def test_claims_signed_for_another_manifest_are_found(
    tmp_path: Path, server: OperatorServer, rng: random.Random
) -> None:
    """Signed by the right keys, and still wrong: what devices would filter by is not what they would get."""
    repo, holders = simple_repository(tmp_path)
    release = make_release(tmp_path, rng)
    claims = msgspec.structs.replace(release.manifest.claims, hardware=("other-board",))
    with ceremony(repo, holders.ring("main")) as run:
        releases.take_in(run, release, allow_lower=False)
        name = release.manifest.name
        entry = signing.entry(name, release.manifest_bytes, claims)
        run.repository.pending["targets"].signed.targets[name] = entry
        run.complete()
    assert refusal(lambda: publish(repo, server, Pauses(rng))).code == "metadata-mismatch"
    assert server.asked == []


def test_expired_metadata_is_not_sent(repo: Path, server: OperatorServer, rng: random.Random) -> None:
    assert refusal(lambda: publish(repo, server, Pauses(rng), days=8)).code == "metadata-expired"
    assert server.asked == []


def test_what_waits_for_signatures_is_not_sent(
    repo: Path, tmp_path: Path, server: OperatorServer, rng: random.Random
) -> None:
    release = make_release(tmp_path, rng, "1.1")
    holders = Holders(tmp_path / "keys")
    (holders.folder / "main" / "targets-main.pem").rename(tmp_path / "elsewhere")
    assert refusal(lambda: sign(repo, holders, release, "main")).code == "key-threshold"
    problem = refusal(lambda: publish(repo, server, Pauses(rng)))
    assert (problem.code, "targets version 2" in problem.what) == ("key-threshold", True)
    assert server.asked == []


def test_an_empty_repository_says_what_to_do(
    tmp_path: Path, server: OperatorServer, rng: random.Random
) -> None:
    repo, _ = simple_repository(tmp_path)
    problem = refusal(lambda: publish(repo, server, Pauses(rng)))
    assert (problem.code, "release sign" in problem.hint) == ("metadata-missing", True)
