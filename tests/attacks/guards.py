"""For each test of an attack, the one check that stands in the attacker's way; and what happens without it.

`GUARDS` maps a test to the source text of its guard and to what is put in its place: the check taken out, the
rest of the program as it is. `python -m tests.attacks.guards [TEST...]` runs each test so, in a process of
its own, and prints one JSON object: test -> "noticed" when the test failed by its own assertions, as it must,
else what happened instead.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Final

from tests.attacks.guard_edits import Edit, agent, core
from tests.attacks.guards_device import DEVICE
from tests.attacks.guards_director import DIRECTED
from tests.attacks.guards_payload import PAYLOADS
from tests.attacks.guards_server import SERVER
from tests.attacks.guards_transport import TRANSPORT

NOTICED: Final = "noticed"

_REFUSE_ROLE_ZERO = Edit("tuf.api._payload", "if threshold < 1:", "if threshold < 0:")

# The check in its layers where a library would catch what ours lets through.
GUARDS: Final[dict[str, tuple[Edit, ...]]] = {
    "test_metadata.test_case_14_one_key_under_two_ids": core(
        "trust.signatures", "signers.add(known.identity)", "signers.add(keyid.encode())"
    ),
    "test_metadata.test_case_14_one_signature_twice": core(
        "trust.metadata", "if len(signatures) != len(envelope.signatures):", "if False:"
    ),
    "test_metadata.test_case_15_threshold_zero": (
        *core(
            "trust.shapes",
            "Threshold = Annotated[int, msgspec.Meta(ge=1,",
            "Threshold = Annotated[int, msgspec.Meta(ge=0,",
        ),
        _REFUSE_ROLE_ZERO,
    ),
    "test_metadata.test_case_16_a_rejected_root_is_not_trusted_later": core(
        "trust.client",
        "            trusted.update_root(data)\n",
        "            self._store.save(Root.type, data)\n            trusted.update_root(data)\n",
    ),
    "test_metadata.test_case_17_a_role_for_one_delegator_does_not_speak_for_another": core(
        "trust.verifier", "if (role, delegator) not in self._vouched:", "if False:"
    ),
    "test_metadata.test_case_18_replay_after_the_files_are_emptied": core(
        "trust.floors",
        "if new.version < floors.timestamp or new.snapshot_meta.version < floors.snapshot:",
        "if False:",
    ),
    "test_metadata.test_case_18_replay_of_a_snapshot_with_a_new_timestamp": core(
        "trust.floors", " or new.snapshot_meta.version < floors.snapshot:", ":"
    ),
    "test_metadata.test_case_19_power_cut_at_every_write": core(
        "durable",
        "        write_all(fd, data)\n        os.fsync(fd)\n    except BaseException:",
        "        write_all(fd, data)\n    except BaseException:",
    ),
    "test_metadata.test_case_19_power_cut_during_the_recovery_from_a_fast_forward": core(
        "trust.verifier",
        "        if floors.lost_keys(self.floors, self.root):\n            self._rotate()\n",
        "",
    ),
    "test_metadata.test_case_26_a_root_is_withheld": core(
        "trust.verifier", "if self.root.version < self.floors.root:", "if False:"
    ),
    "test_metadata.test_case_26_everything_is_withheld_until_it_expires": core(
        "trust.verifier", '            self._check_fresh(self._kept, "timestamp")\n', ""
    ),
    "test_metadata.test_case_26_a_root_past_its_time": core(
        "trust.verifier", '        self._check_fresh(self.root, "root")\n', "        return\n"
    ),
    "test_agent.test_case_25_a_counter_below_the_floor": agent(
        "decide", "if claims.counter < floor:", "if False:"
    ),
    "test_agent.test_case_25_a_counter_in_the_manifest_alone": agent(
        "metadata", "if found.claims != claims or found.name != signed.path:", "if False:"
    ),
    "test_agent.test_case_27_a_clock_of_1970": agent(
        "memory", "0.0 if known is None else known.trusted_s)", "0.0)"
    ),
    "test_agent.test_case_27_a_clock_of_1970_on_a_new_device": agent(
        "memory", "max(clock.now_s(), BUILD_TIME_S, ", "max(clock.now_s(), "
    ),
    "test_agent.test_case_27_a_clock_of_2038": agent(
        "metadata",
        "        trusted = self._client.refresh()\n",
        "        memory.note_time(self._store, self._now_s)\n        trusted = self._client.refresh()\n",
    ),
    "test_agent.test_case_27_a_clock_that_runs_backwards": agent(
        "metadata", "        memory.note_time(self._store, self._now_s)\n", ""
    ),
    "test_metadata.test_case_28_duplicate_keys": core(
        "trust.strict", "if len(result) != len(pairs):", "if False:"
    ),
    "test_metadata.test_case_28_deep_nesting": core("trust.strict", "if _too_deep(value):", "if False:"),
    "test_metadata.test_case_28_numbers_that_are_none": core(
        "trust.strict", "            parse_constant=_refuse,\n", ""
    ),
    "test_metadata.test_case_28_names_composed_in_two_ways": core(
        "trust.strict", 'if not unicodedata.is_normalized("NFC", value):', "if False:"
    ),
    "test_metadata.test_case_29_a_version_past_all_bounds": core(
        "trust.shapes", "msgspec.Meta(ge=1, le=limits.METADATA_VERSION_MAX)", "msgspec.Meta(ge=1)"
    ),
    "test_metadata.test_case_29_recovery_from_the_highest_version": core(
        "trust.verifier", "self.floors = floors.forget(self.floors)", "return"
    ),
    **DEVICE,
    **DIRECTED,
    **PAYLOADS,
    **SERVER,
    **TRANSPORT,
}

_WHOLE: Final = "test_whole_agent."
GUARDS.update(
    {
        test.replace("test_metadata.", _WHOLE): edits
        for test, edits in GUARDS.items()
        if test.startswith("test_metadata.")
    }
)
for _test in ("test_case_06_a_signature_of_another_length", "test_case_07_no_signature"):
    GUARDS[f"{_WHOLE}{_test}"] = GUARDS[f"test_release.{_test}"]
# One search asks for a role once, so here it is the role's own signatures that stand in the way.
GUARDS[f"{_WHOLE}test_case_17_a_role_for_one_delegator_does_not_speak_for_another"] = core(
    "trust.verifier",
    "        self._verify_by(self._delegator(delegator), document, role)\n        _check_version(",
    "        _check_version(",
)
# The recovery's cuts are a matter of the client's own store.
del GUARDS[f"{_WHOLE}test_case_19_power_cut_during_the_recovery_from_a_fast_forward"]


class _Edited(SourceFileLoader):
    def __init__(self, name: str, path: str, edits: Sequence[Edit]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        source = Path(self.path).read_text(encoding="utf-8")
        for edit in self._edits:
            found = source.count(edit.old)
            if found != 1:
                raise LookupError(f"{edit.module} holds the guard {found} times: {edit.old!r}")
            source = source.replace(edit.old, edit.new)
        return compile(source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the edited modules before anybody else does."""

    def __init__(self, edits: Sequence[Edit]) -> None:
        self._edits = edits

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        mine = [edit for edit in self._edits if edit.module == fullname]
        if not mine:
            return None
        sys.meta_path.remove(self)
        found = importlib.util.find_spec(fullname)
        sys.meta_path.insert(0, self)
        assert found is not None
        assert found.origin is not None
        return importlib.util.spec_from_file_location(
            fullname, found.origin, loader=_Edited(fullname, found.origin, mine)
        )


def run_without(test: str) -> str:
    """Runs one test with its guard taken out, in a process that is forked for it."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        outcome = _outcome(test)
        os.write(write, outcome.encode("utf-8")[-4000:])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        outcome = pipe.read().decode("utf-8", "replace")
    os.waitpid(child, 0)
    return outcome or "the process ended without a word"


def _outcome(test: str) -> str:
    import pytest

    module, _, name = test.partition(".")
    edits = GUARDS[test]
    for edit in edits:
        sys.modules.pop(edit.module, None)
    sys.meta_path.insert(0, _Finder(edits))
    try:
        function = getattr(importlib.import_module(f"tests.attacks.{module}"), name)
        with tempfile.TemporaryDirectory() as folder:
            function(Path(folder))
    except (AssertionError, pytest.fail.Exception):
        return NOTICED
    except BaseException:  # noqa: BLE001  the outcome is told, whatever it is
        return traceback.format_exc()
    return "passed: the test does not depend on its guard"


_LIBRARIES: Final = ("pytest", "msgspec", "cryptography.hazmat.primitives.serialization", "http.server")
_SERVER_LIBRARIES: Final = ("alembic", "fastapi", "httpx", "jinja2", "sqlalchemy.dialects.sqlite", "uvicorn")


_WITH_SERVER: Final = ("test_server.", "test_directed.", "test_director.", "test_certified.")


def _preload(tests: Sequence[str]) -> None:
    """What these tests need and no guard is in, so that each fork starts with it."""
    is_server = any(test.startswith(_WITH_SERVER) for test in tests)
    for name in (*_LIBRARIES, *(_SERVER_LIBRARIES if is_server else ())):
        importlib.import_module(name)


if __name__ == "__main__":
    named = sys.argv[1:] or list(GUARDS)
    _preload(named)
    print(json.dumps({test: run_without(test) for test in named}, indent=1))
