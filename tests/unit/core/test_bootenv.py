"""The boot record in U-Boot's and GRUB's own forms: bounds, damage, agreement with what a loader picks."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlock.core import bootenv, bootenv_grub, bootenv_uboot
from twinlock.core.bootrecord import (
    TRIAL_ID_BYTES_MAX,
    BootRecord,
    arm,
    clip_reason,
    initial,
    newest,
    next_boot,
)
from twinlock.core.errors import TwinlockError
from twinlock.core.limits import TRIES_MAX

Codec = tuple[Callable[[BootRecord], bytes], Callable[[bytes], BootRecord | None]]


def encode_flagged(record: BootRecord) -> bytes:
    return bootenv_uboot.encode(record, flags_byte=True)


CODECS: dict[str, Codec] = {
    "uboot": (bootenv_uboot.encode, bootenv_uboot.decode),
    "uboot-flags": (encode_flagged, bootenv_uboot.decode),
    "grub": (bootenv_grub.encode, bootenv_grub.decode),
}
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
LONGEST = BootRecord(
    seq=bootenv.SEQ_MAX,
    default="a",
    trying="b",
    tries_left=TRIES_MAX,
    trial_id="~" * TRIAL_ID_BYTES_MAX,
    failed=frozenset({"a", "b"}),
    reason="=" * 96,
)


@st.composite
def records(draw: st.DrawFn) -> BootRecord:
    default = draw(st.sampled_from("ab"))
    trying = draw(st.sampled_from([None, "b" if default == "a" else "a"]))
    return BootRecord(
        seq=draw(st.integers(0, bootenv.SEQ_MAX)),
        default=default,
        trying=trying,
        tries_left=draw(st.integers(0, TRIES_MAX)) if trying else 0,
        trial_id=draw(
            st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=TRIAL_ID_BYTES_MAX)
        ),
        failed=frozenset(draw(st.sets(st.sampled_from("ab")))),
        reason=clip_reason(draw(st.text(max_size=120))),
    )


@each_codec
@given(record=records())
def test_a_record_comes_back_as_it_was(codec: str, record: BootRecord) -> None:
    encode, decode = CODECS[codec]
    assert decode(encode(record)) == record


@each_codec
def test_the_longest_record_fits_its_block(codec: str) -> None:
    encode, decode = CODECS[codec]
    assert decode(encode(LONGEST)) == LONGEST


def test_what_grub_reads_of_the_longest_record_lies_in_one_sector() -> None:
    block = bootenv_grub.encode(LONGEST)
    assert 0 < block.index(b"tl_check=") < block.index(b"\ntl_reason=") < bootenv_grub.SECTOR_SIZE_BYTES


@each_codec
def test_a_used_up_sequence_number_is_refused(codec: str) -> None:
    with pytest.raises(TwinlockError) as caught:
        CODECS[codec][0](replace(LONGEST, seq=bootenv.SEQ_MAX + 1))
    assert caught.value.code == "boot-record"


@each_codec
@pytest.mark.parametrize("size", [0, 1, 4, 5, 511, 513, 1023, 1025])
def test_blocks_of_a_wrong_size_are_no_record(codec: str, size: int) -> None:
    encode, decode = CODECS[codec]
    assert decode(encode(initial()).ljust(1100, b"\0")[:size]) is None


@each_codec
@pytest.mark.parametrize("fill", [0x00, 0xFF, 0x23])
def test_blank_blocks_are_no_record(codec: str, fill: int) -> None:
    encode, decode = CODECS[codec]
    assert decode(bytes([fill]) * len(encode(initial()))) is None


@each_codec
@given(record=records(), at=st.integers(0, 511), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_boots(codec: str, record: BootRecord, at: int, bit: int) -> None:
    encode, decode = CODECS[codec]
    block = bytearray(encode(record))
    block[at] ^= 1 << bit
    found = decode(bytes(block))
    # The flags byte is outside U-Boot's checksum and means nothing in this place. GRUB's block has comments,
    # and a reason that no loader reads; nothing else may differ.
    if found is not None:
        assert codec == "grub" or (codec == "uboot-flags" and at == 4)
        assert replace(found, reason="") == replace(record, reason="")


@each_codec
@given(old=records(), new=records(), cut=st.integers(0, 1024))
def test_a_torn_block_is_old_new_or_nothing(codec: str, old: BootRecord, new: BootRecord, cut: int) -> None:
    encode, decode = CODECS[codec]
    before, after = encode(old), encode(new)
    found = decode(after[:cut] + before[cut:])
    if found is None or codec != "grub":
        assert found in (None, old, new)
    else:
        assert replace(found, reason="") in (replace(old, reason=""), replace(new, reason=""))
        assert found.reason in ("", old.reason, new.reason)


@given(text=st.binary(max_size=512))
def test_any_bytes_under_a_valid_checksum_are_a_record_or_nothing(text: bytes) -> None:
    data = text.ljust(508, b"\0")[:508]
    block = zlib.crc32(data).to_bytes(4, "little") + data
    found = bootenv_uboot.decode(block)
    assert found is None or bootenv_uboot.decode(bootenv_uboot.encode(found)) == found


@given(body=st.binary(max_size=999))
def test_any_bytes_under_grubs_signature_are_a_record_or_nothing(body: bytes) -> None:
    found = bootenv_grub.decode((bootenv_grub.SIGNATURE + body).ljust(1024, b"#")[:1024])
    assert found is None or bootenv_grub.decode(bootenv_grub.encode(found)) is not None


VALID = {
    "armed": "3",
    "default": "a",
    "failed": "-",
    "reason": "-",
    "seq": "5",
    "trial": "t",
    "tries": "2",
    "try": "b",
    "version": "1",
}


def test_spent_tries_count_as_steps_of_the_sequence() -> None:
    found = bootenv.from_fields(VALID)
    assert found is not None
    assert (found.seq, found.tries_left) == (6, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"default": "c"},
        {"default": "b"},  # the default is never on trial
        {"try": "c"},
        {"try": "-"},  # armed without a slot
        {"tries": "4"},  # more than armed
        {"armed": "8", "tries": "8"},
        {"tries": "-1"},
        {"tries": ""},
        {"tries": "²"},
        {"seq": "99999999999"},
        {"seq": str(bootenv.SEQ_MAX + 1)},
        {"failed": "ba"},
        {"failed": ""},
        {"trial": "%74"},  # not the form that is written
        {"trial": "%FF"},
        {"trial": "a" * (TRIAL_ID_BYTES_MAX + 1)},
        {"trial": ""},
        {"reason": "%FF"},
        {"reason": "b" * 97},
        {"reason": "a b"},
        {"extra": "1"},
    ],
)
def test_fields_out_of_their_domain_are_no_record(change: dict[str, str]) -> None:
    assert bootenv.from_fields(VALID) is not None
    assert bootenv.from_fields(VALID | change) is None


@pytest.mark.parametrize("name", bootenv.FIELDS)
def test_a_missing_field_is_no_record(name: str) -> None:
    assert bootenv.from_fields({key: value for key, value in VALID.items() if key != name}) is None


@each_codec
def test_no_shell_or_parser_ever_sees_a_special_character(codec: str) -> None:
    record = replace(LONGEST, trial_id="a;b$(c)'\"\\ =\n", reason="x\x00${y}`z`|&><")
    block = CODECS[codec][0](record)
    text = block[4:].decode("latin-1") if codec != "grub" else block.decode("ascii")
    assert not set(text) & set("$;'\"\\`|&<>( )") - {" ", "\n"}


def loader_choice(blocks: list[bytes]) -> int:
    """The copy that the scripts take: the higher `tl_seq`, then the fewer `tl_tries`, then the first."""
    keys = []
    for number, block in enumerate(blocks):
        pairs = dict(entry.split("=") for entry in block[4:].decode("ascii").split("\0") if "=" in entry)
        keys.append((int(pairs["tl_seq"], 16), -int(pairs["tl_tries"]), -number))
    return -max(keys)[2]


@given(seq=st.integers(0, 1000), tries=st.integers(1, TRIES_MAX), boots=st.integers(0, 9))
def test_loader_and_agent_agree_on_the_newer_copy(seq: int, tries: int, boots: int) -> None:
    """Through an arming, any number of boots as the script does them, and the agent's next record."""
    old = BootRecord(seq=seq, default="a", failed=frozenset({"b"}))
    armed = arm(old, "b", tries, "trial")
    blocks = [bootenv_uboot.encode(old), bootenv_uboot.encode(armed)]
    expected = armed
    for _ in range(boots):
        best = loader_choice(blocks)
        number, record = newest(tuple(map(bootenv_uboot.decode, blocks)))
        assert (number, record) == (best, expected)
        _, expected = next_boot(record)
        if expected != record:
            blocks[1 - best] = count_down(blocks[best])
    number, record = newest(tuple(map(bootenv_uboot.decode, blocks)))
    assert (number, record) == (loader_choice(blocks), expected)


def count_down(block: bytes) -> bytes:
    """What the script does to a block: one try less, every other variable as it was."""
    text = block[4:].decode("ascii")
    (tries,) = (int(entry[9:]) for entry in text.split("\0") if entry.startswith("tl_tries="))
    data = text.replace(f"tl_tries={tries}", f"tl_tries={tries - 1}").encode("ascii")
    return zlib.crc32(data).to_bytes(4, "little") + data


def test_the_flags_byte_of_a_redundant_environment_is_found_and_kept() -> None:
    plain, flagged = bootenv_uboot.encode(initial()), bootenv_uboot.encode(initial(), flags_byte=True)
    assert bootenv_uboot.has_flags_byte(plain) is False
    assert bootenv_uboot.has_flags_byte(flagged) is True
    assert bootenv_uboot.has_flags_byte(bytes(512)) is None


def test_of_two_lines_with_one_name_the_last_counts_as_in_grub() -> None:
    block = bootenv_grub.encode(initial()).rstrip(b"#")
    changed = (block + b"tl_default=b\n").ljust(1024, b"#")
    assert bootenv_grub.decode(changed) is None  # and then the check no longer agrees


def test_every_pair_of_copies_differs_or_is_equal() -> None:
    """Two different records of one codec never share their bytes."""
    some = [initial("a"), initial("b"), LONGEST, replace(LONGEST, tries_left=0), replace(LONGEST, reason="")]
    for encode, _ in CODECS.values():
        assert all(encode(one) != encode(two) for one, two in itertools.combinations(some, 2))
