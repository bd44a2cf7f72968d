"""Who signed: counting distinct keys towards a threshold (the TUF specification, section 5.3.4).

A key counts once, however many names it is listed under: two ids of one key are one person.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twinlock.core.errors import error
from twinlock.core.trust.keys import public_key

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tuf.api.metadata import Key, Role

    from twinlock.core.trust.metadata import Document, R


def check_threshold(role: Role, keys: Mapping[str, Key], document: Document[R], what: str) -> None:
    """Raises TrustError `metadata-signature` unless enough distinct keys of `role` signed `document`.

    A signature that does not verify, or of a key of an unknown type, counts for nothing and spoils nothing.
    At least one signature must verify, whatever the threshold.
    """
    signers: set[bytes] = set()
    for keyid in role.keyids:
        key, signature = keys.get(keyid), document.signatures.get(keyid)
        if key is None or not signature:
            continue
        known = public_key(key.keytype, key.scheme, str(key.keyval.get("public", "")))
        if known is None or known.identity in signers or not known.verifies(signature, document.payload):
            continue
        signers.add(known.identity)
        if len(signers) >= role.threshold:
            return
    raise error(
        "metadata-signature",
        f"{what} is signed by {len(signers)} of the {role.threshold} keys that it needs",
    )
