"""Build all pairs once and keep them: `python -m bench.pairs.build`.

CACHE/pairs/trees/{old,new,app-old,app-new}
CACHE/pairs/images/{security,application}-{ext4,erofs,squashfs-zstd,squashfs-gzip}.{old,new}
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.pairs import images, roots
from bench.pairs.mirrors import SUITES
from bench.pairs.tools import MissingError, cache

FORMATS = ("ext4", "erofs", "squashfs-zstd", "squashfs-gzip")
TREES = {"security": ("old", "new"), "application": ("app-old", "app-new")}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two images and the trees that they were made from."""

    name: str
    old: Path
    new: Path
    old_tree: Path
    new_tree: Path


def tree(name: str) -> Path:
    """The tree called `name`, built when it is missing."""
    folder = cache() / "pairs/trees"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.exists():
        return path
    suites = SUITES if name.endswith("new") else SUITES[:1]
    if name.startswith("app-"):
        roots.build_application(path, tree("old"), suites)
    else:
        roots.build_root(path, suites)
    return path


def _image(tree_name: str, name: str, form: str) -> Path:
    folder = cache() / "pairs/images"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.exists():
        return path
    if form == "ext4":
        images.build_ext4(tree(tree_name), path)
    elif form == "erofs":
        images.build_erofs(tree(tree_name), path)
    else:
        images.build_squashfs(tree(tree_name), path, form.removeprefix("squashfs-"))
    return path


def pair(kind: str, form: str) -> Pair:
    """The pair `kind` (security, application) in the format `form`; built when it is missing."""
    old, new = TREES[kind]
    name = f"{kind}-{form}"
    return Pair(
        name, _image(old, f"{name}.old", form), _image(new, f"{name}.new", form), tree(old), tree(new)
    )


def main() -> int:
    try:
        for kind in TREES:
            for form in FORMATS:
                built = pair(kind, form)
                print(f"{built.name}: {built.old.stat().st_size:,} -> {built.new.stat().st_size:,} bytes")
    except MissingError as problem:
        print(f"pairs: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
