"""What enrolment needs of a store beside the devices themselves."""

from __future__ import annotations

from typing import Protocol


class EnrolmentStore(Protocol):
    """Keys that the operator named before their device came."""

    def preauthorised(self, device_id: str) -> str | None:
        """The fingerprint named for this id, if one is waiting to be used."""
        ...

    def preauthorise(self, device_id: str, fingerprint: str, now_ms: int) -> None:
        """Names a fingerprint for an id, in place of one named before."""
        ...

    def use_preauthorisation(self, device_id: str) -> None:
        """Forgets the fingerprint: it served."""
        ...
