"""The device's key on a PKCS#11 token: a real token in software, in a process of its own as on a device."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.unit.agent import softhsm
from tests.unit.agent.fakes import MemoryStore
from twinlock.agent import pkcs11_key, pkcs11_process
from twinlock.agent.pkcs11_key import REFUSED, TokenKey
from twinlock.agent.pkcs11_process import P256, Answer, Ask, Keeper, Place, read_pin
from twinlock.core.device_key import DevicePublicKey
from twinlock.core.errors import TwinlockError, error

replace = msgspec.structs.replace
OWN = "twinlock-device"
P384 = bytes.fromhex("06052b81040022")


@pytest.fixture
def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: None) -> softhsm.Tokens:
    return softhsm.plugged_in(tmp_path / "hsm", monkeypatch)


@pytest.fixture
def session(tokens: softhsm.Tokens) -> Iterator[Any]:
    """A session of this process with the token, to look at what is on it and to change it."""
    import pkcs11

    library = pkcs11.lib(str(softhsm.module()))
    library.reinitialize()
    with library.get_token(token_label=softhsm.LABEL).open(rw=True, user_pin=softhsm.PIN) as opened:
        yield opened


def failure(step: Callable[[], object]) -> TwinlockError:
    with pytest.raises(TwinlockError) as caught:
        step()
    assert caught.value.hint
    return caught.value


def made(tokens: softhsm.Tokens) -> TokenKey:
    key = TokenKey(MemoryStore(), tokens.identity)
    key.make()
    return key


def pair(session: Any, label: str = OWN, curve: bytes = P256, **private: bool) -> tuple[Any, Any]:
    """A pair on the token that the agent did not make."""
    from pkcs11 import Attribute, KeyType

    kind = session.create_domain_parameters(KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True)
    template = {Attribute[name]: value for name, value in private.items()}
    found: tuple[Any, Any] = kind.generate_keypair(
        store=True, label=label, id=os.urandom(4), private_template=template
    )
    return found


# --- the key


def test_a_key_is_made_once_and_signs(tokens: softhsm.Tokens) -> None:
    key = TokenKey(MemoryStore(), tokens.identity)
    assert not key.find()
    key.make()
    key.make()
    public = DevicePublicKey(key.public_pem)
    public.verify(key.sign(b"text"), b"text", "it")
    assert failure(lambda: public.verify(key.sign(b"text"), b"other", "it")).code == "signature-invalid"
    again = TokenKey(MemoryStore(), tokens.identity, key.fingerprint)
    assert again.fingerprint == public.fingerprint
    again.prove()
    assert not again.is_extractable


def test_it_cannot_leave_the_token(tokens: softhsm.Tokens, session: Any) -> None:
    from pkcs11 import Attribute, ObjectClass
    from pkcs11.exceptions import AttributeSensitive

    made(tokens)
    (private,) = session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})
    asked = ("SENSITIVE", "EXTRACTABLE", "NEVER_EXTRACTABLE", "LOCAL", "SIGN")
    found = private.get_attributes([Attribute[name] for name in asked])
    assert list(found.values()) == [True, False, True, True, True]
    with pytest.raises(AttributeSensitive):
        private[Attribute.VALUE]


def test_the_token_is_not_told_what_the_public_half_is_for(tokens: softhsm.Tokens) -> None:
    """tpm2-pkcs11 1.9 refuses to make a key when it is, whatever it is told."""
    from pkcs11 import DEFAULT, Attribute

    asked: dict[str, Any] = {}

    class Token:
        """As far as a key is made with it."""

        def open(self, rw: bool) -> Token:
            assert rw
            return self

        def __enter__(self) -> Token:
            return self

        def __exit__(self, *how: object) -> None:
            return

        def create_domain_parameters(self, *what: object, local: bool) -> Token:
            return self

        def generate_keypair(self, **given: Any) -> None:
            asked.update(given)

    Keeper(place(tokens))._make(Token())  # type: ignore[arg-type]
    told = {attribute for attribute, value in asked["public_template"].items() if value is not DEFAULT}
    assert told == set()
    assert {Attribute.ENCRYPT, Attribute.WRAP, Attribute.VERIFY} <= set(asked["public_template"])


def test_a_slots_number_names_a_token_too(tokens: softhsm.Tokens, session: Any) -> None:
    fingerprint = made(tokens).fingerprint
    by_slot = replace(tokens.identity, token=None, slot=session.token.slot.slot_id)
    assert TokenKey(MemoryStore(), by_slot).fingerprint == fingerprint
    nowhere = replace(by_slot, slot=session.token.slot.slot_id ^ 1)
    assert failure(TokenKey(MemoryStore(), nowhere).find).code == "pkcs11-missing"


def test_a_half_that_a_cut_of_power_left_does_not_count(tokens: softhsm.Tokens, session: Any) -> None:
    public, _ = pair(session)
    public.destroy()
    _, private = pair(session)
    private.destroy()
    assert not TokenKey(MemoryStore(), tokens.identity).find()
    made(tokens).prove()


def test_two_keys_of_one_label_are_refused(tokens: softhsm.Tokens, session: Any) -> None:
    pair(session)
    pair(session)
    problem = failure(TokenKey(MemoryStore(), tokens.identity).find)
    assert (problem.code, "2 keys" in problem.what) == ("pkcs11-failed", True)


def test_more_keys_than_anybody_has_are_not_looked_through(
    tokens: softhsm.Tokens, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pkcs11_process, "KEYS_MAX", 2)
    for _ in range(3):
        pair(session)
    monkeypatch.setattr(Keeper, "_open", lambda keeper: session)
    answer = Keeper(place(tokens)).answer(Ask("find"))
    assert (answer.code, "more than 2" in answer.what) == ("pkcs11-failed", True)


def test_another_curve_is_refused(tokens: softhsm.Tokens, session: Any) -> None:
    pair(session, curve=P384)
    assert failure(TokenKey(MemoryStore(), tokens.identity).find).code == "identity-missing"


def test_a_key_that_the_token_gives_out_is_known_as_such(tokens: softhsm.Tokens, session: Any) -> None:
    pair(session, EXTRACTABLE=True, SENSITIVE=False)
    key = TokenKey(MemoryStore(), tokens.identity)
    key.prove()
    assert key.is_extractable


def test_halves_that_do_not_belong_together_are_seen(tokens: softhsm.Tokens, session: Any) -> None:
    from pkcs11 import Attribute

    (public, _), (_, private) = pair(session), pair(session, label="other")
    private[Attribute.ID] = public[Attribute.ID]
    for one in session.get_objects({Attribute.LABEL: "twinlock-device", Attribute.SIGN: True}):
        one.destroy()
    private[Attribute.LABEL] = "twinlock-device"
    problem = failure(TokenKey(MemoryStore(), tokens.identity).prove)
    assert (problem.code, "do not belong" in problem.what) == ("pkcs11-failed", True)


def test_a_key_that_is_gone_or_another_one_is_not_the_enrolled(tokens: softhsm.Tokens) -> None:
    bound = TokenKey(MemoryStore(), tokens.identity, "0" * 64)
    assert failure(lambda: bound.sign(b"x")).code == "identity-lost"
    made(tokens)
    other = TokenKey(MemoryStore(), tokens.identity, "0" * 64)
    problem = failure(lambda: other.sign(b"x"))
    assert (problem.code, "--new-identity" in problem.hint) == ("identity-lost", True)


# --- the token and its PIN


def place(tokens: softhsm.Tokens, **changes: Any) -> Place:
    asked = tokens.identity
    made = Place(module=str(asked.module), key=asked.key, token=asked.token, pin_file=str(asked.pin_file))
    return replace(made, **changes)


def test_a_token_that_is_not_there_and_those_that_are(tokens: softhsm.Tokens) -> None:
    tokens.add("second")
    problem = failure(TokenKey(MemoryStore(), replace(tokens.identity, token="third")).find)
    assert problem.code == "pkcs11-missing"
    assert "'device' in slot" in problem.what
    assert "'second' in slot" in problem.what
    tokens.add("second")
    problem = failure(TokenKey(MemoryStore(), replace(tokens.identity, token="second")).find)
    assert (problem.code, "2 tokens" in problem.what) == ("pkcs11-missing", True)


def test_no_module_and_no_module_of_this_kind(tokens: softhsm.Tokens, tmp_path: Path) -> None:
    nothing = replace(tokens.identity, module=tmp_path / "nothing.so")
    assert failure(TokenKey(MemoryStore(), nothing).find).code == "package-missing"
    (tmp_path / "text.so").write_text("no library")
    text = replace(tokens.identity, module=tmp_path / "text.so")
    assert failure(TokenKey(MemoryStore(), text).find).code == "pkcs11-failed"


def test_a_refused_pin_is_never_tried_again(tokens: softhsm.Tokens, session: Any) -> None:
    """The token is given the very PIN that it refused: a second try would be let in."""
    made(tokens)
    store = MemoryStore()
    tokens.write_pin("654321")
    key = TokenKey(store, tokens.identity)
    assert failure(key.find).code == "pkcs11-pin"
    assert b"654321" not in store.files[REFUSED]
    session.set_pin(softhsm.PIN, "654321")
    problem = failure(key.find)  # the same process
    assert problem.code == "pkcs11-pin"
    noted = dict(store.files)
    problem = failure(TokenKey(store, tokens.identity).find)  # a later run
    assert (problem.code, "before" in problem.what) == ("pkcs11-pin", True)
    assert store.files == noted
    store.remove(REFUSED)
    assert TokenKey(store, tokens.identity).find()


def test_another_pin_is_tried_and_the_right_one_clears_the_note(tokens: softhsm.Tokens) -> None:
    store = MemoryStore()
    for pin in ("111111", "222222", "1"):
        tokens.write_pin(pin)
        problem = failure(TokenKey(store, tokens.identity).find)
        assert (problem.code, "refuses" in problem.what) == ("pkcs11-pin", True)
    tokens.write_pin(softhsm.PIN)
    assert not TokenKey(store, tokens.identity).find()
    assert REFUSED not in store.files


def test_a_damaged_note_counts_as_none(tokens: softhsm.Tokens) -> None:
    store = MemoryStore()
    store.write(REFUSED, b"rubbish")
    assert not TokenKey(store, tokens.identity).find()


@pytest.mark.parametrize("flag", ["USER_PIN_LOCKED", "USER_PIN_FINAL_TRY"])
def test_the_last_try_is_not_used_up(flag: str, tokens: softhsm.Tokens) -> None:
    from pkcs11 import TokenFlag

    class Token:
        flags = TokenFlag[flag]

        def open(self, **options: object) -> None:
            raise AssertionError("it was tried")

    problem = failure(lambda: pkcs11_process._logged_in(Token(), place(tokens), tokens.pin_file))  # type: ignore[arg-type]
    assert problem.code == "pkcs11-pin"


def test_without_a_pin_a_token_that_wants_one_has_no_key_to_show(tokens: softhsm.Tokens) -> None:
    made(tokens)
    assert not TokenKey(MemoryStore(), replace(tokens.identity, pin_file=None)).find()
    bare = TokenKey(MemoryStore(), replace(tokens.identity, pin_file=None))
    problem = failure(bare.make)
    assert (problem.code, "pin_file" in problem.hint) == ("pkcs11-pin", True)


def test_a_pin_file_is_a_small_file_of_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "pin"
    assert failure(lambda: read_pin(path)).code == "pkcs11-pin"
    path.write_text("1234\n")
    path.chmod(0o640)
    assert "by others" in failure(lambda: read_pin(path)).what
    path.chmod(0o400)
    assert read_pin(path) == "1234"
    path.chmod(0o600)
    for bad in (b"", b"\n", b"12\n34\n", b"\xff", b"x" * 257, b"12\x0034"):
        path.write_bytes(bad)
        assert failure(lambda: read_pin(path)).code == "pkcs11-pin", bad
    path.write_bytes(b"1234")
    path.unlink()
    os.mkfifo(path, 0o600)
    assert "no file" in failure(lambda: read_pin(path)).what


def test_a_pin_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pin"
    path.write_text("1234")
    path.chmod(0o600)
    real = os.fstat

    def foreign(fd: int) -> os.stat_result:
        known = list(real(fd))
        known[stat.ST_UID] = 12345
        return os.stat_result(known)

    monkeypatch.setattr(os, "fstat", foreign)
    assert "somebody else" in failure(lambda: read_pin(path)).what


# --- the process


def test_faults_of_a_module_are_answers(tokens: softhsm.Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    from pkcs11 import exceptions

    for problem, code in (
        (exceptions.DeviceRemoved(), "pkcs11-missing"),
        (exceptions.PinExpired(), "pkcs11-pin"),
        (exceptions.GeneralError("the bus is stuck"), "pkcs11-failed"),
        (ValueError("oops"), "pkcs11-failed"),
        (ImportError("No module named 'pkcs11'"), "package-missing"),
        (error("io-error", "the disk"), "io-error"),
    ):
        keeper = Keeper(place(tokens))
        monkeypatch.setattr(Keeper, "_open", lambda keeper, problem=problem: raising(problem))
        answer = keeper.answer(Ask("find"))
        assert answer.code == code
        monkeypatch.setattr(Keeper, "_open", lambda keeper: raising(AssertionError("it was asked again")))
        assert keeper.answer(Ask("sign")) is answer


def raising(problem: Exception) -> None:
    raise problem


def test_what_a_token_says_of_a_point_is_checked() -> None:
    point = b"\x04" + bytes(64)
    for value in (point, b"\x04\x41" + point):
        assert pkcs11_process._point(half(value)) == point
    for bad in (half(b""), half(point[:-1]), half(b"\x04\x42" + point), half(point, P384)):
        assert failure(lambda bad=bad: pkcs11_process._point(bad)).code == "identity-missing"  # type: ignore[misc]


def half(value: bytes, curve: bytes = P256) -> Any:
    from pkcs11 import Attribute

    return {Attribute.EC_POINT: value, Attribute.EC_PARAMS: curve}


PROGRAMS = {
    "one that never answers": ("import time; time.sleep(600)", "within"),
    "one that is killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    "one that ends": ("import sys; sys.stdin.readline(); sys.exit(3)", "ended with 3"),
    "one that says something else": ("print('hello', flush=True); input(); input()", "no answer"),
    "one that does not stop talking": ("while True: print('x' * 1000, end='')", "no answer"),
    "one that answers what is no answer": ("input(); input(); print('[]')", "no answer"),
    "one that gives a short signature": (
        "import sys\ninput()\n"
        'for line in sys.stdin: print(\'{"signature":"AAAA","point":"POINT"}\', flush=True)',
        "3 bytes",
    ),
    "one with a code of its own": ('input(); input(); print(\'{"code":"x-y","what":"odd"}\')', "odd"),
}


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_a_process_that_fails_is_one_error(
    name: str, tokens: softhsm.Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, said = PROGRAMS[name]
    monkeypatch.setattr(pkcs11_key, "ANSWER_WAIT_S_MAX", 1.0 if "never" in name else 30.0)
    monkeypatch.setattr(pkcs11_key, "END_WAIT_S_MAX", 0.1 if "never" in name or "stop" in name else 30.0)
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    source = source.replace("POINT", msgspec.json.encode(point).decode().strip('"'))
    key = TokenKey(MemoryStore(), tokens.identity, program=(sys.executable, "-c", source))
    problem = failure(lambda: key.sign(b"x"))
    assert problem.code == "pkcs11-failed"
    assert said in problem.what


def test_a_program_that_is_not_there(tokens: softhsm.Tokens) -> None:
    key = TokenKey(MemoryStore(), tokens.identity, program=("/nowhere/program",))
    assert failure(key.find).code == "internal"


def test_a_point_that_is_on_no_curve_is_no_key(tokens: softhsm.Tokens) -> None:
    answer = msgspec.json.encode(Answer(point=b"\x04" + b"\x01" * 64)).decode()
    source = f"import sys\ninput()\nfor line in sys.stdin: print({answer!r}, flush=True)"
    key = TokenKey(MemoryStore(), tokens.identity, program=(sys.executable, "-c", source))
    assert failure(key.find).code == "identity-missing"


def test_what_a_module_prints_is_no_answer(tokens: softhsm.Tokens, capfd: pytest.CaptureFixture[str]) -> None:
    """A library that writes to standard output, as some do, must not be taken for the process."""
    source = (
        "import os\n"
        "from twinlock.agent import pkcs11_process\n"
        "real = pkcs11_process.Keeper._open\n"
        "def noisy(keeper):\n"
        "    os.write(1, b'the library says hello\\n')\n"
        "    return real(keeper)\n"
        "pkcs11_process.Keeper._open = noisy\n"
        "pkcs11_process.main()\n"
    )
    key = TokenKey(MemoryStore(), tokens.identity, program=(sys.executable, "-c", source))
    key.make()
    key.prove()
    assert "hello" in capfd.readouterr().err
