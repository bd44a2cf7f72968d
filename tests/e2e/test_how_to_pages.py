"""How-to pages whose commands are run as they stand there, against a real server and real agents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import pages
from tests.e2e.server.process import ServerProcess, twinlock
from tests.unit.agent.test_processes import device

PASSPHRASE = "correct horse battery staple"


class Site:
    """A server in `folder/server` with a repository beside it; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server: ServerProcess | None = None
        self.shell("twinlock keys create; twinlock keys init")
        made = twinlock(
            "server",
            "init",
            str(folder / "server"),
            "--root",
            str(folder / "repo/metadata/1.root.json"),
            "--json",
        )
        assert made.returncode == 0, made.stderr
        self.token = json.loads(made.stdout)["token"]
        (folder / "token").write_text(self.token)

    def restart(self) -> None:
        """On another port, so devices made before have to be told."""
        self.stop()
        self.server = ServerProcess(self.folder / "server")

    def stop(self) -> None:
        if self.server is not None:
            code, log = self.server.stop()
            assert code == 0, log
            self.server = None

    @property
    def address(self) -> str:
        assert self.server is not None
        return self.server.address

    def shell(self, script: str, **variables: str) -> str:
        """Runs commands as a reader would; what they printed."""
        if self.server is not None:
            variables |= {"TWINLOCK_SERVER": self.address, "TWINLOCK_TOKEN_FILE": str(self.folder / "token")}
        return pages.shell(script, self.folder, variables).stdout

    def asked(self, path: str) -> Any:
        """What the operator's API says."""
        assert self.server is not None
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.server.request("GET", f"/api/v1{path}", headers=headers).json()

    def statuses(self) -> dict[str, str]:
        return {one["device_id"]: one["status"] for one in self.asked("/devices")["devices"]}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.stop()


class Reader:
    """A device of the reader's, and the page's blocks with the reader's own words in them."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        folder = site.folder / name
        folder.mkdir()
        self.config = device(folder, site.address)
        self.config.write_text(f'device_id = "{name}"\n{self.config.read_text()}')

    def run(self, block: str, words: dict[str, str] | None = None) -> str:
        """One block; commands of the agent are this device's, DEVICE is its id."""
        text = pages.replaced(block, words or {}).replace("DEVICE", self.name)
        text = text.replace("twinlock-agent ", f"twinlock-agent --config {self.config} ")
        return self.site.shell(text)


def test_the_page_on_enrolment_works_as_written(site: Site) -> None:
    page = pages.sections("how-to/enrolment.md")
    site.restart()

    by_hand = Reader(site, "by-hand")
    enrol, accept = page["By hand"]
    assert "by-hand: pending" in by_hand.run(enrol)
    assert "by-hand is accepted" in by_hand.run(accept)

    with_token = Reader(site, "with-token")
    make, use, revoke = page["With a one-time token"]
    token = next(line for line in with_token.run(make).splitlines() if "0042" in line).split()[-1]
    with_token.run(use, {"TOKEN": token})
    with_token.run(revoke)
    states = {
        one["name"]: (one["state"], one["used_by"]) for one in site.asked("/enrolment-tokens")["tokens"]
    }
    assert states == {"line-3-0042": ("used", "with-token"), "line-3-0043": ("revoked", None)}

    listed = Reader(site, "listed")
    request, name = page["By a list of keys"]
    listed.run(request)
    listed.run(name)
    assert "listed: accepted" in listed.run(enrol)

    certified = Reader(site, "certified")
    authority, install, certify, enrol = page["By a CA of the fleet's own"]
    certified.run(authority)
    certified.run(install, {"/srv/twinlock": str(site.folder / "server")})
    site.restart()
    state = certified.config.parent / "state"
    certified.run(certify, {"/data/identity/agent": str(state)})
    text = certified.config.read_text().splitlines()
    text = [f'server = "{site.address}"' if line.startswith("server = ") else line for line in text]
    certified.config.write_text("\n".join([f'certificate = "{state}/certificate.pem"', *text]))
    assert "certified: accepted" in certified.run(enrol)

    (reject,) = page["Shutting one out"]
    by_hand.run(reject)
    assert site.statuses() == {
        "by-hand": "rejected",
        "with-token": "accepted",
        "listed": "accepted",
        "certified": "accepted",
    }


def test_the_page_on_directors_works_as_written(site: Site) -> None:
    page = pages.sections("how-to/director.md")
    key, sign, give = page["Make it"]
    (rotate,) = page["Change its keys"]
    here = {"/srv/twinlock": str(site.folder / "server")}
    site.shell(pages.replaced(key, here))
    (old,) = (path.stem.rpartition("-")[2] for path in (site.folder / "director-keys").glob("targets-*.pub"))
    site.shell(sign, TWINLOCK_PASSPHRASE=PASSPHRASE)
    site.shell(pages.replaced(give, here))
    site.restart()

    own = Reader(site, "directed")
    (own.config.parent / "state/root.json").write_bytes(
        (site.folder / "repo/metadata/1.root.json").read_bytes()
    )
    director = f'director = "{site.folder}/director/metadata/1.root.json"'
    own.config.write_text(f"{director}\n{own.config.read_text()}")
    own.run("twinlock-agent enrol\ntwinlock device accept DEVICE\ntwinlock-agent run")
    word = own.config.parent / "state/director/targets.json"
    (first,) = (one["keyid"] for one in json.loads(word.read_text())["signatures"])
    assert first.startswith(old)

    # The new key's id is known only once its line has run.
    make, rest = rotate.split("twinlock keys rotate", 1)
    site.shell(pages.replaced(make, here))
    (new,) = (path.stem.rpartition("-")[2] for path in (site.folder / "new").glob("targets-*.pub"))
    words = {**here, "1a2b3c4d": new, "9f8e7d": old}
    site.shell(pages.replaced("twinlock keys rotate" + rest, words), TWINLOCK_PASSPHRASE=PASSPHRASE)
    address = site.address
    site.restart()
    own.config.write_text(own.config.read_text().replace(address, site.address))
    own.run("twinlock-agent run")
    (second,) = (one["keyid"] for one in json.loads(word.read_text())["signatures"])
    assert second.startswith(new)
    assert json.loads((word.parent / "root.json").read_text())["signed"]["version"] == 2
