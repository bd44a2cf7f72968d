"""What the reports of one device make of one assignment: pure, and the same in whatever order they arrive.

An assignment keeps a summary of the *set* of reports about it, each part of which only grows:
- `progress`: the furthest step reported (assigned < downloading < armed < trial);
- the first final report, first by the device's own `seq`: its outcome is the assignment's;
- the first report that said `rolled_back`, if any did.

So an outcome is final once, with two documented exceptions. A device that committed a release and fell back
from it later (`succeeded`, then `rolled_back`) has rolled back. A final report with a lower `seq` that comes
late was said first, and counts. Any other second outcome changes nothing and is noted as a contradiction.

`mark` is what the server did: `superseded` by a newer rollout, `halted` with its rollout, or `satisfied`
because the device said in a poll that it runs this very image. What a device reports outweighs any mark: a
device that was past stopping when the operator halted the rollout still has its outcome.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from twinlock.core.protocol import FINAL_STATES

Progress = Literal["assigned", "downloading", "armed", "trial"]
Mark = Literal["", "superseded", "halted", "satisfied"]
State = Literal[
    "assigned",
    "downloading",
    "armed",
    "trial",
    "succeeded",
    "failed",
    "rolled_back",
    "lost",
    "superseded",
    "halted",
]
STEPS: Final[tuple[Progress, ...]] = ("assigned", "downloading", "armed", "trial")
STATES: Final[tuple[State, ...]] = (
    "assigned",
    "downloading",
    "armed",
    "trial",
    "succeeded",
    "failed",
    "rolled_back",
    "lost",
    "superseded",
    "halted",
)
OPEN_STATES: Final[frozenset[str]] = frozenset(STEPS)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of one assignment; `first_seq` and `first_outcome` are of the first final report."""

    progress: Progress = "assigned"
    first_seq: int | None = None
    first_outcome: str = ""
    rolled_back_seq: int | None = None
    mark: Mark = ""

    @property
    def outcome_seq(self) -> int | None:
        """The `seq` of the report that decided the outcome."""
        fell_back = self.first_outcome == "succeeded" and self.rolled_back_seq is not None
        return self.rolled_back_seq if fell_back else self.first_seq

    @property
    def outcome(self) -> str:
        """The device's outcome, or an empty text while it has reported none."""
        return self.first_outcome if self.outcome_seq == self.first_seq else "rolled_back"

    @property
    def state(self) -> State:
        """The one word for people and gates: outcome, else mark, else progress."""
        outcome = self.outcome
        if outcome == "succeeded" or (self.mark == "satisfied" and not outcome):
            return "succeeded"
        if outcome == "failed":
            return "failed"
        if outcome == "rolled_back":
            return "rolled_back"
        if self.mark == "superseded" or self.mark == "halted":
            return self.mark
        return self.progress

    @property
    def is_open(self) -> bool:
        """Whether the device shall still be told to run the release."""
        return self.state in OPEN_STATES


def fold(summary: Summary, report_state: str, seq: int) -> Summary:
    """The summary with one more report. Folding is commutative, associative and idempotent."""
    if report_state in FINAL_STATES:
        if summary.first_seq is None or seq < summary.first_seq:
            summary = replace(summary, first_seq=seq, first_outcome=report_state)
        if report_state == "rolled_back" and (
            summary.rolled_back_seq is None or seq < summary.rolled_back_seq
        ):
            summary = replace(summary, rolled_back_seq=seq)
        return summary
    for number, step in enumerate(STEPS):
        if step == report_state and number > STEPS.index(summary.progress):
            return replace(summary, progress=step)
    return summary


def contradicts(summary: Summary, report_state: str, seq: int) -> bool:
    """Whether a report gives a second outcome, other than that a committed release was rolled back later."""
    if report_state not in FINAL_STATES or summary.first_seq is None or seq == summary.first_seq:
        return False
    if report_state == summary.first_outcome:
        return False
    earlier, later = (
        (report_state, summary.first_outcome)
        if seq < summary.first_seq
        else (summary.first_outcome, report_state)
    )
    return (earlier, later) != ("succeeded", "rolled_back")


def with_mark(summary: Summary, mark: Mark) -> Summary:
    """The summary with the server's own decision; an assignment that is no longer open stays as it is."""
    return replace(summary, mark=mark) if summary.is_open else summary
