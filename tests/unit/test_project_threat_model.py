"""The threat model claims nothing that no test shows: every test that it names exists."""

from __future__ import annotations

import re

from tests.project_files import ROOT, python_files

PAGE = ROOT / "docs/explanation/threat-model.md"
ROW = re.compile(r"^\|(?!-| can \|)(.*)\|$", re.MULTILINE)


def existing() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in python_files("tests")]
    return {name for text in texts for name in re.findall(r"^def (test_\w+)\(", text, re.MULTILINE)}


def named(text: str) -> set[str]:
    return set(re.findall(r"`(test_\w+)`", text))


def test_every_test_that_is_named_exists() -> None:
    found = named(PAGE.read_text(encoding="utf-8"))
    assert len(found) >= 40
    assert found - existing() == set()


def test_every_claim_names_a_test() -> None:
    claims = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(claims) >= 25
    assert [claim for claim in claims if not named(claim)] == []


def test_every_attacker_has_a_section() -> None:
    titles = re.findall(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    words = ["network", "mirror", "server", "online key", "token", "offline key", "device", "packages"]
    assert [word for word in [*words, "insider"] if not any(word in title for title in titles)] == []
