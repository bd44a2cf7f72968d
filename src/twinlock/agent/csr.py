"""`twinlock-agent csr`: asks the fleet's CA for a certificate of this device's key."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from twinlock.agent import config as configs
from twinlock.agent import identity, lock
from twinlock.agent.clock import SystemClock
from twinlock.agent.store import FolderStore
from twinlock.core.certificate_request import certificate_request

if TYPE_CHECKING:
    import argparse
    from pathlib import Path


def command(config_path: Path, args: argparse.Namespace) -> int:
    """Prints a certificate request (PKCS #10, PEM) for the device's key, which is made if there is none.

    Exit code 0. Raises DeviceError `config-invalid`, `agent-busy`, `identity-missing`, and for a key on a
    token what `pkcs11_key` names.
    """
    config = configs.load(config_path)
    with lock.held(config.state, SystemClock()):
        own = identity.load_or_make(FolderStore(config.state), config)
        request = certificate_request(own.key, own.device_id)
    if args.json:
        print(json.dumps({"version": 1, "device_id": own.device_id, "request": request}))
    else:
        print(request, end="")
    return 0
