"""The guards of a device with a director: see `guards`."""

from __future__ import annotations

from typing import Final

from tests.attacks.guard_edits import Edit, agent, core

# What "no director's answer, no director" would look like.
_OPTIONAL: Final = (
    *agent(
        "check",
        "        if self._director is not None:\n            self._directed = ",
        "        if self._director and answer.director:\n            self._directed = ",
    ),
    *agent(
        "check",
        "        if self._director is not None:\n            assert self._directed is not None\n",
        "        if self._directed is not None:\n",
    ),
)
_DEVICE: Final = core("trust.director", "if named != device_id:", "if False:")

_SIGNATURE: Final = core("trust.signatures", "not known.verifies(signature, document.payload)", "False")
_DELEGATES: Final = core("trust.director", "if targets.delegations is not None:", "if False:")
_AGREES: Final = core("trust.director", "    check_agreement(assigned, directed.release)\n", "")

DIRECTED: Final[dict[str, tuple[Edit, ...]]] = {
    "test_director.test_case_20_the_repositories_disagree_on_the_hash": core(
        "trust.director", "image.hashes[kind] == directed.hashes[kind]", "True"
    ),
    "test_director.test_case_20_the_repositories_share_no_strong_hash": core(
        "trust.director", "(bool(shared), ", "(True, "
    ),
    "test_director.test_case_20_the_repositories_disagree_on_the_length": core(
        "trust.director", "(image.length == directed.length, ", "(True, "
    ),
    "test_director.test_case_20_the_repositories_disagree_on_the_claims": core(
        "trust.director", "image.unrecognized_fields == directed.unrecognized_fields,", "True,"
    ),
    "test_director.test_case_21_a_director_that_delegates": _DELEGATES,
    "test_director.test_case_21_a_director_that_delegates_and_names_nothing": _DELEGATES,
    "test_director.test_case_21_a_director_that_names_two_releases": core(
        "trust.director", "if len(targets.targets) > RELEASES_MAX:", "if False:"
    ),
    "test_director.test_case_22_the_directors_word_of_this_release_for_another_device": _DEVICE,
    "test_director.test_case_23_an_empty_answer_without_a_device": core(
        "trust.director", "if named != device_id:", "if named is not None and named != device_id:"
    ),
    "test_director.test_case_24_the_image_keys_alone_are_stolen": _AGREES,
    "test_director.test_case_24_the_director_key_alone_is_stolen": _AGREES,
    "test_director.test_case_24_a_stranger_is_no_director": _SIGNATURE,
    "test_directed.test_case_20_the_director_names_another_release": _AGREES,
    "test_directed.test_case_20_the_director_names_no_release": core(
        "trust.director",
        '        what = f"the server assigns {assigned.path[:80]!r}, the director no release"\n',
        "        return\n",
    ),
    "test_directed.test_case_22_the_answer_for_another_device": _DEVICE,
    "test_directed.test_case_22_an_older_answer_for_this_device": agent(
        "director", "            files.save_floors(directed.floors)\n", "            pass\n"
    ),
    "test_directed.test_case_23_the_empty_answer_for_another_device": _DEVICE,
    "test_directed.test_case_24_a_poll_without_the_directors_word": _OPTIONAL,
    "test_directed.test_case_24_without_the_directors_word_in_recovery": _OPTIONAL,
    "test_directed.test_case_24_the_state_with_its_root_is_lost": agent(
        "director", "config.director is not None or store", "store"
    ),
    "test_directed.test_case_24_an_answer_past_its_time": core(
        "trust.verifier", "if signed.is_expired(self.now):", "if False:"
    ),
    "test_directed.test_case_24_an_answer_by_a_stranger": _SIGNATURE,
    "test_directed.test_case_24_a_directors_key_that_was_taken_away": core(
        "trust.client", "            self._store.save(Root.type, data)\n", ""
    ),
}
