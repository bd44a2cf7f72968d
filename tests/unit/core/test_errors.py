"""The catalogue of failures: each code has a kind, a class, an exit code and something to do."""

from __future__ import annotations

import pytest

from twinlock.core import errors
from twinlock.core.errors import CATALOGUE, EXIT_CODES, Kind, TwinlockError, error


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_code_makes_its_own_class_with_a_hint(code: str) -> None:
    problem = error(code, "the thing broke")
    assert type(problem) is not TwinlockError
    assert type(problem).__name__.lower() == f"{problem.kind.value}error"
    assert (problem.code, problem.what, problem.exit_code) == (
        code,
        "the thing broke",
        EXIT_CODES[problem.kind],
    )
    assert problem.hint == CATALOGUE[code].hint
    assert len(problem.hint) > 10
    assert problem.hint.isprintable()
    assert code == code.lower().replace("_", "-").replace(" ", "")
    assert str(problem) == f"the thing broke [{code}]"


def test_the_place_that_raises_may_know_better() -> None:
    assert error("disk-full", "x", hint="empty the bin").hint == "empty the bin"


def test_an_unknown_code_is_a_fault_of_ours() -> None:
    with pytest.raises(KeyError):
        error("no-such-code", "x")


def test_kinds_have_exit_codes_of_their_own() -> None:
    assert set(EXIT_CODES) == set(Kind)
    assert len(set(EXIT_CODES.values())) == len(Kind)
    assert all(code not in (0, 1, 126, 127, 130, 141) for code in EXIT_CODES.values())


def test_only_transport_failures_are_worth_a_retry() -> None:
    """Code that retries catches TransportError; nothing else may be one."""
    for code in CATALOGUE:
        problem = error(code, "x")
        assert isinstance(problem, errors.TransportError) is (problem.kind is Kind.TRANSPORT)
