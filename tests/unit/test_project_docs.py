"""Documents that stay true: links, commands, the map of packages, generated pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import reference
from tests.project_files import ROOT, SRC, module_name, python_files, tracked

PAGES = tracked(".md")
MAP_DEPTH_MAX = 2  # twinlock.server.store is on the map, what is inside it is found from there
MAKE = re.compile(r"^make ([a-z]+)\b")
CODE = re.compile(r"`([^`\n]+)`|^ {4}(\S.*)$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """What `#...` may name in a page, as the usual renderers make it from headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        goal = page.parent / name if name else page
        if not goal.exists() or (anchor and anchor not in anchors(goal.read_text(encoding="utf-8"))):
            found.append(f"{page.name}: {link}")
    return found


def code_in(text: str) -> list[str]:
    return ["".join(groups) for groups in CODE.findall(text)]


def test_links_lead_somewhere() -> None:
    assert [broken for page in PAGES for broken in broken_links(page)] == []


def test_a_broken_link_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](#a-title) [b](page.md#a-title) [c](https://x.example/y)\n")
    assert broken_links(page) == []
    page.write_text("# A title\n[a](#another) [b](gone.md)\n")
    assert broken_links(page) == ["page.md: #another", "page.md: gone.md"]


def test_every_document_can_be_reached_from_the_readme() -> None:
    seen: set[Path] = set()
    ahead = [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
        ahead += [(page.parent / link).resolve() for link in links if "://" not in link]
    assert {page for page in PAGES if page not in seen} == set()


def test_commands_in_documents_are_make_targets() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pieces = [code for page in PAGES for code in code_in(page.read_text(encoding="utf-8"))]
    named = {name for code in pieces for name in MAKE.findall(code)}
    assert {"demo", "test"} <= named <= targets


def test_the_map_names_every_package() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    packages = {module_name(path) for path in python_files("src") if path.name == "__init__.py"}
    named = set(re.findall(r"^\| `(twinlock\.[a-z_.]+)` \|", text, re.MULTILINE))
    shown = {name for name in packages if 1 <= name.count(".") <= MAP_DEPTH_MAX}
    assert shown - named == set(), "packages that ARCHITECTURE.md does not name"
    assert [name for name in named if not (SRC / name.replace(".", "/")).is_dir()] == []


def test_every_decision_is_listed_and_says_what_was_rejected() -> None:
    listed = (ROOT / "docs/adr/README.md").read_text(encoding="utf-8")
    decisions = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    assert len(decisions) >= 6
    numbers = [path.name[:4] for path in decisions]
    assert len(set(numbers)) == len(numbers)
    for number, path in zip(numbers, decisions, strict=True):
        text = path.read_text(encoding="utf-8")
        assert path.name.startswith(f"{number}-")
        assert text.startswith(f"# {number}: ")
        assert path.name in listed
        assert "rejected" in text.lower()
        assert "\nStatus: " in text


@pytest.mark.parametrize("name", sorted(reference.PAGES))
def test_generated_pages_say_what_the_code_says(name: str) -> None:
    written = (ROOT / "docs/reference" / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run `make format`"


def test_error_codes_in_documents_exist() -> None:
    from twinlock.core.errors import CATALOGUE

    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for code in re.findall(r"error\[([a-z-]+)\]", text):
            assert code in CATALOGUE, f"{page.name}: {code}"
