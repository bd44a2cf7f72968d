"""Importing this imports what verifies metadata, without what could only sign it.

securesystemslib loads python-pkcs11 for its signers as soon as it finds it: 5 MiB and a third of a check's
CPU time, on each device that has it for its own key. A device signs no metadata. In a process that begins
with this module, securesystemslib's signer for tokens says that python-pkcs11 is missing.
"""

from __future__ import annotations

from twinlock.agent.lean import import_without

import_without("securesystemslib.signer", "pkcs11")
