"""What enrolment needs of a store beside the devices themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from twinlock.server.enrolment.tokens import EnrolmentToken


class EnrolmentStore(Protocol):
    """Keys that the operator named before their device came, and one-time tokens."""

    def preauthorised(self, device_id: str) -> str | None:
        """The fingerprint named for this id, if one is waiting to be used."""
        ...

    def preauthorise(self, device_id: str, fingerprint: str, now_ms: int) -> None:
        """Names a fingerprint for an id, in place of one named before."""
        ...

    def use_preauthorisation(self, device_id: str) -> None:
        """Forgets the fingerprint: it served."""
        ...

    def token(self, token_sha256: str) -> EnrolmentToken | None:
        """The token with this hash, kept from others until the transaction ends."""
        ...

    def token_named(self, name: str) -> EnrolmentToken | None:
        """The token of this name."""
        ...

    def tokens(self, limit: int) -> Sequence[EnrolmentToken]:
        """Up to `limit` tokens, newest first."""
        ...

    def count_open_tokens(self, now_ms: int) -> int:
        """How many could still be used."""
        ...

    def add_token(self, token: EnrolmentToken) -> None:
        """A new token."""
        ...

    def revoke_token(self, name: str, now_ms: int) -> bool:
        """Takes the token of this name back, if it is there, unused, and was not before."""
        ...

    def use_token(self, name: str, device_id: str, now_ms: int) -> None:
        """Notes which device it served."""
        ...
