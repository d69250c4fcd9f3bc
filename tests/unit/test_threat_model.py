"""Every test and vector that the threat model names exists: a claim without its attack is a wish."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def functions(path):
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_named_test_exists():
    named = re.findall(r"`(tests/[\w/.-]+\.py)::(\w+)`", PAGE)
    assert len(named) > 30
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file() or test not in functions(ROOT / file)
    ]
    assert missing == []


def test_every_named_vector_exists():
    named = re.findall(r"`(tests/vectors/v1/[^`]+)`", PAGE)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_reference_is_of_a_form_that_is_checked():
    for reference in re.findall(r"`(tests/[^`]+)`", PAGE):
        assert re.fullmatch(r"tests/[\w/.-]+\.py::test_\w+|tests/vectors/v1/[\w-]+\.sealed", reference)


def test_every_list_of_what_an_adversary_cannot_do_names_tests():
    for claim in re.split(r"\*\*cannot\*\*", PAGE)[1:]:
        section = claim.split("\n## ")[0]
        for item in re.findall(r"^\* ((?:.|\n(?!\* |\n))+)", section, re.M):
            assert "`tests/" in item, item
