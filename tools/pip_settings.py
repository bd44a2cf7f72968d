"""The machine's pip configuration, told to uv.

uv does not read pip's configuration. A machine that reaches its packages through an index, a mirror, a folder
of wheels or a private certificate says so to pip (environment or pip.conf); what is said there is passed on,
unless uv has been told something of its own.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path

# pip's option, uv's variable, the variables that mean "uv was told already", and how uv separates a list.
_PASSED_ON = (
    ("index-url", "UV_DEFAULT_INDEX", ("UV_DEFAULT_INDEX", "UV_INDEX_URL"), " "),
    ("extra-index-url", "UV_INDEX", ("UV_INDEX", "UV_EXTRA_INDEX_URL"), " "),
    ("find-links", "UV_FIND_LINKS", ("UV_FIND_LINKS",), ","),
    ("trusted-host", "UV_INSECURE_HOST", ("UV_INSECURE_HOST",), " "),
    ("timeout", "UV_HTTP_TIMEOUT", ("UV_HTTP_TIMEOUT",), " "),
    ("cert", "SSL_CERT_FILE", ("SSL_CERT_FILE",), " "),
)


def pip_options(env: Mapping[str, str]) -> dict[str, str]:
    """pip's options as pip would see them: site file, user files, environment; the later wins.

    A file that cannot be read or parsed is left out, as pip itself would complain about it in its own words.
    """
    home = Path(env["HOME"]) if env.get("HOME") else None
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf")]
    if home is not None:
        config_home = Path(env.get("XDG_CONFIG_HOME") or home / ".config")
        files += [home / ".pip/pip.conf", config_home / "pip/pip.conf"]
    if env.get("PIP_CONFIG_FILE"):
        files = [] if env["PIP_CONFIG_FILE"] == os.devnull else [*files, Path(env["PIP_CONFIG_FILE"])]
    options: dict[str, str] = {}
    for path in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError) as error:
            print(f"twinlock: {path} was left out: {error}")
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                options.update(parser.items(section))
    for name, value in env.items():
        if name.startswith("PIP_") and value:
            options[name[4:].lower().replace("_", "-")] = value
    return options


def uv_environment(env: Mapping[str, str]) -> dict[str, str]:
    """A copy of `env` with pip's settings in uv's words added where uv has none."""
    options = pip_options(env)
    result = dict(env)
    for option, variable, told, separator in _PASSED_ON:
        value = options.get(option, "")
        words = value.split()
        if option == "find-links":  # pip passes over a folder that is not there, uv refuses it
            words = [word for word in words if "://" in word or Path(word).is_dir()]
        if words and not any(env.get(name) for name in told):
            result[variable] = separator.join(words)
    return result
