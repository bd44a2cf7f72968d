"""The guards of the device's own state: see `guards`."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard_edits import Edit, agent, core

_INVALID_FIRST: Final = agent(
    "install",
    "number: int, data: bytes | bytearray | memoryview) -> None:\n        self._invalidate()\n",
    "number: int, data: bytes | bytearray | memoryview) -> None:\n",
)

DEVICE: Final[dict[str, tuple[Edit, ...]]] = {
    "test_device.test_case_33_the_state_has_no_room": core(
        "durable", "    if problem.errno in _FULL:\n", "    if False:\n"
    ),
    "test_device.test_case_33_the_slot_has_no_room": _INVALID_FIRST,
    "test_device.test_case_34_a_plan_swapped_after_its_check": agent(
        "perform", "if plan is None or plan.job != effect.job:", "if plan is None:"
    ),
    "test_device.test_case_34_a_state_folder_that_others_may_write": agent(
        "lock", "        check_private(folder)\n", ""
    ),
    "test_device.test_case_34_the_state_is_the_agents_alone": agent(
        "store", "FILE_MODE: Final = 0o600", "FILE_MODE: Final = 0o644"
    ),
    "test_device.test_case_35_a_crash_while_the_slot_is_written": _INVALID_FIRST,
    "test_device.test_case_35_a_crash_between_commit_and_floor": agent(
        "machine", "    elif job is not None and state.phase is not Phase.INSTALLING:\n", "    elif False:\n"
    ),
    "test_device.test_case_36_a_repository_of_keys_that_anybody_has": core(
        "trust.signatures",
        '    raise error(\n        "metadata-signature",',
        '    if signers: raise error(\n        "metadata-signature",',
    ),
    "test_device.test_case_36_no_root_is_built_in": agent(
        "metadata",
        "pinned = store.read(name, size_bytes_max)",
        'pinned = store.read(name, size_bytes_max) or b"{}"',
    ),
}
