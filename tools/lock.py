"""Write the hashed requirement files in requirements/ from pyproject.toml (`make lock`).

One file per set that somebody installs. dev.txt is solved first and binds the others, so that every set
holds the same version of a package. The files name no index and no machine. UPGRADE=1 takes newer versions.
"""

from __future__ import annotations

import os
import subprocess
import tomllib

from bootstrap import ROOT, ensure_uv, usable_environment

REQUIREMENTS = ROOT / "requirements"
SETS: dict[str, list[str]] = {
    "dev": ["pyproject.toml", "--all-extras", "--group", "pyproject.toml:dev"],
    "device": ["pyproject.toml"],
    "pkcs11": ["pyproject.toml", "--extra", "pkcs11"],
    "publish": ["pyproject.toml", "--extra", "publish"],
    "hsm": ["pyproject.toml", "--extra", "hsm"],
    "server": ["pyproject.toml", "--extra", "server"],
    "lab": ["pyproject.toml", "--extra", "lab"],
}


def compile_set(uv: str, name: str, source: list[str], stdin: str | None, upgrade: bool) -> None:
    """Solve one set for every supported Python and write it, hashes included, as requirements/NAME.txt."""
    output = REQUIREMENTS / f"{name}.txt"
    argv = [uv, "pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes"]
    argv += ["--no-header", "--no-annotate", "--no-emit-package", "twinlock", "--no-strip-extras"]
    argv += ["--output-file", str(output.relative_to(ROOT))]
    if upgrade:
        argv.append("--upgrade")
    if name not in ("dev", "uv"):
        argv += ["--constraints", "requirements/dev.txt"]
    env = usable_environment(dict(os.environ))
    done = subprocess.run([*argv, *source], cwd=ROOT, env=env, input=stdin, text=True)
    if done.returncode:
        raise SystemExit(f"twinlock: no solution for requirements/{name}.txt; uv's own words stand above")
    lines = [
        line for line in output.read_text(encoding="utf-8").splitlines() if not line.startswith("--index")
    ]
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"wrote {output.relative_to(ROOT)}: {sum('==' in line for line in lines)} packages")


def main() -> None:
    upgrade = bool(os.environ.get("UPGRADE"))
    uv = ensure_uv()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    REQUIREMENTS.mkdir(exist_ok=True)
    for name, source in SETS.items():
        compile_set(uv, name, source, None, upgrade)
    build = "\n".join([*project["build-system"]["requires"], ""])
    compile_set(uv, "build", ["-"], build, upgrade)
    compile_set(uv, "uv", ["-"], "uv\n", upgrade)


if __name__ == "__main__":
    main()
