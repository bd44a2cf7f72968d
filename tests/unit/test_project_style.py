"""House rules that no linter knows, each with an example that shows the rule bites."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

import pytest

from tests.project_files import ROOT, parse, python_files, tracked

FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# Words that other systems give clashing meanings to; only the gateways to those systems name types so.
BANNED_TYPE_WORDS = {"Update", "Updates", "Deployment", "Target", "Targets", "Artifact", "Artifacts"}
# Put together here, so that this file does not hold what it looks for.
MACHINE_WORDS = ("py" + "pi.org", "python" + "hosted", "/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")

Rule = Callable[[ast.Module], list[str]]


def long_functions(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                found.append(f"line {node.lineno}: {node.name} has {lines} lines")
    return found


def silent_excepts(tree: ast.Module) -> list[str]:
    """Handlers that only pass. A narrow exception that is truly nothing is `contextlib.suppress`."""
    return [
        f"line {node.lineno}: an exception is swallowed"
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler)
        and all(
            isinstance(line, ast.Pass)
            or (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            for line in node.body
        )
    ]


def banned_type_names(tree: ast.Module) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            words = set(re.findall(r"[A-Z][a-z0-9]*", node.name))
            found += [f"line {node.lineno}: class {node.name}"] if words & BANNED_TYPE_WORDS else []
    return found


def stubs(tree: ast.Module) -> list[str]:
    """Functions whose whole body raises NotImplementedError, abstract ones apart."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = [
                line
                for line in node.body
                if not (isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant))
            ]
            abstract = any("abstract" in ast.unparse(decorator) for decorator in node.decorator_list)
            raises = len(body) == 1 and isinstance(body[0], ast.Raise)
            if raises and not abstract and "NotImplementedError" in ast.unparse(body[0]):
                found.append(f"line {node.lineno}: {node.name} is a stub")
    return found


def sleeps_outside_loops(tree: ast.Module) -> list[str]:
    """`sleep` calls that wait for time instead of for a condition: those that no loop repeats."""
    looped: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.While | ast.For | ast.AsyncFor):
            looped.update(ast.walk(node))
    return [
        f"line {node.lineno}: sleeps without asking for a condition"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)) == "sleep"
        and ast.unparse(node.args[0] if node.args else node) not in ("0", "0.0")
        and node not in looped
    ]


# Each rule, and the folders that it holds in.
RULES: dict[Rule, tuple[str, ...]] = {
    long_functions: ("src", "tests", "bench", "tools"),
    silent_excepts: ("src", "tests", "bench", "tools"),
    stubs: ("src", "bench", "tools"),
    banned_type_names: ("src",),
    sleeps_outside_loops: ("tests",),
}


@pytest.fixture(scope="module")
def offences() -> dict[Rule, list[str]]:
    """What each rule finds; every file is parsed once."""
    found: dict[Rule, list[str]] = {rule: [] for rule in RULES}
    for path in python_files("src", "tests", "bench", "tools"):
        tree, name = parse(path), path.relative_to(ROOT)
        for rule, folders in RULES.items():
            exempt = rule is banned_type_names and "gateways" in name.parts
            if name.parts[0] in folders and not exempt:
                found[rule] += [f"{name}: {offence}" for offence in rule(tree)]
    return found


def test_files_are_short_enough_to_read() -> None:
    lengths = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n") + 1
        for path in python_files("src", "bench", "tools")
    }
    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_holds(rule: Rule, offences: dict[Rule, list[str]]) -> None:
    assert offences[rule] == []


def test_nothing_is_left_for_later() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked(".py", ".md", ".toml", ".sh", ".html", ".js")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if UNFINISHED.search(line)
    ]
    assert found == []


def test_no_file_speaks_of_the_machine_it_was_written_on() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in MACHINE_WORDS if word in text]
    assert found == []


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (long_functions, "def f():\n" + "    x\n" * 69, "def f():\n" + "    x\n" * 70),
        (
            silent_excepts,
            "try:\n    f()\nexcept E as e:\n    note(e)",
            "try:\n    f()\nexcept E:\n    'why'\n    pass",
        ),
        (banned_type_names, "class Targeted: ...", "class BaseTarget: ..."),
        (
            stubs,
            "@abc.abstractmethod\ndef f():\n    raise NotImplementedError",
            "def f():\n    raise NotImplementedError('x')",
        ),
        (sleeps_outside_loops, "while not ready():\n    time.sleep(0.01)", "time.sleep(2)\nassert ready()"),
    ],
)
def test_each_rule_bites(rule: Rule, good: str, bad: str) -> None:
    assert rule(ast.parse(good)) == []
    assert len(rule(ast.parse(bad))) == 1
