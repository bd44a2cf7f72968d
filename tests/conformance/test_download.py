"""Files: what is listed is what is stored, and nothing else is."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from tuf.api.metadata import TargetFile

from tests.conformance.driver import Driver
from tests.conformance.repository import ALL, Repository

LISTED = ("targets", "snapshot", "timestamp")


@pytest.mark.parametrize("name", ["file.txt", "path/to/a/file.txt", "with space+%and~", "naïve/ünï"])
def test_a_listed_file_is_stored(client: Driver, repository: Repository, name: str) -> None:
    entry = repository.add_file(b"content", name)
    for path in entry.get_prefixed_paths():
        repository.files[f"targets/{quote(path, safe='/%+~')}"] = b"content"
    repository.publish(*LISTED)
    assert client.refresh() == 0
    assert client.downloaded() == []
    assert client.download(name) == 0
    assert client.downloaded() == [b"content"]


def test_an_unlisted_file_is_unknown(client: Driver, repository: Repository) -> None:
    repository.files["targets/file"] = b"content"
    assert client.download("file") == 1
    assert client.code == "release-unknown"
    assert client.downloaded() == []


def test_a_file_that_is_here_is_not_fetched_again(client: Driver, repository: Repository) -> None:
    repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    assert client.download("file") == 0
    repository.asked.clear()
    assert client.download("file") == 0
    assert repository.asked == ["metadata/2.root.json", "metadata/timestamp.json"]


def test_a_changed_copy_is_fetched_again(client: Driver, repository: Repository) -> None:
    repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    assert client.download("file") == 0
    (stored,) = client.downloads.iterdir()
    stored.write_bytes(b"tampered")
    assert client.download("file") == 0
    assert client.downloaded() == [b"content"]


@pytest.mark.parametrize("served", [b"other77", b"contents", b"conten", b""])
def test_other_bytes_are_not_stored(client: Driver, repository: Repository, served: bytes) -> None:
    entry = repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    repository.files[f"targets/{entry.get_prefixed_paths()[0]}"] = served
    assert client.download("file") == 1
    assert client.code == ("transfer-oversized" if len(served) > 7 else "manifest-hash")
    assert client.downloaded() == []


def test_a_missing_file_is_not_stored(client: Driver, repository: Repository) -> None:
    entry = repository.add_file(b"content", "file")
    repository.publish(*LISTED)
    del repository.files[f"targets/{entry.get_prefixed_paths()[0]}"]
    assert client.download("file") == 1
    assert client.code == "metadata-missing"
    assert client.downloaded() == []


def test_changes_replace_the_stored_file_and_forgeries_do_not(client: Driver, repository: Repository) -> None:
    for number in range(4):
        content = f"content {number}".encode()
        entry = repository.add_file(content, "file")
        repository.publish(*LISTED)
        assert client.download("file") == 0
        assert client.downloaded() == [content]
        path = f"targets/{entry.get_prefixed_paths()[0]}"
        repository.files[path] = content[::-1]
        (stored,) = client.downloads.iterdir()
        stored.unlink()
        assert client.download("file") == 1
        assert client.downloaded() == []
        repository.files[path] = content
        assert client.download("file") == 0


@pytest.mark.parametrize("hashes", [["sha256"], ["sha512"], ["sha256", "sha512"], ["md5", "sha384"]])
def test_strong_hashes_are_enough(client: Driver, repository: Repository, hashes: list[str]) -> None:
    repository.add_file(b"content", "file", hashes=hashes)
    repository.publish(*LISTED)
    assert client.download("file") == 0
    assert client.downloaded() == [b"content"]


@pytest.mark.parametrize("hashes", [["md5"], ["sha1"], ["unknown-hash"]])
def test_weak_and_unknown_hashes_prove_nothing(
    client: Driver, repository: Repository, hashes: list[str]
) -> None:
    entry = TargetFile.from_data("file", b"content", ["sha512" if "unknown-hash" in hashes else hashes[0]])
    entry.hashes = dict.fromkeys(hashes, next(iter(entry.hashes.values())))
    repository.targets.targets["file"] = entry
    repository.files[f"targets/{entry.get_prefixed_paths()[0]}"] = b"content"
    repository.root.consistent_snapshot = True
    repository.publish(*ALL)
    assert client.download("file") == 1
    assert client.code in ("manifest-hash", "metadata-malformed")
    assert client.downloaded() == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../b", "a//b", ".", "..", "a/"])
@pytest.mark.parametrize("consistent", [True, False])
def test_no_path_is_made_from_a_name(
    client: Driver, repository: Repository, name: str, consistent: bool
) -> None:
    """The metadata API lets such names pass; they neither become an address nor a path."""
    repository.root.consistent_snapshot = consistent
    repository.targets.targets[name] = TargetFile.from_data(name, b"content", ["sha256"])
    repository.publish(*ALL)
    assert client.download(name) == 1
    assert client.code == "metadata-malformed"
    assert not any(path.startswith("targets/") for path in repository.asked)
    assert client.downloaded() == []
    outside = {path.name for path in client.downloads.parent.iterdir()}
    assert outside == {"metadata", "initial_root.json"}
