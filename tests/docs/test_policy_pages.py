"""The cookbook of policies prints what its commands print; its reference has every member there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from strongroom.attest.requirements_kinds import KINDS
from strongroom.release import limits
from strongroom.release.decision import CODES
from strongroom.release.policy import _KNOWN

from .pages import DOCS, ROOT, Block, blocks

COOKBOOK = DOCS / "how-to" / "write-a-policy.md"
REFERENCE = DOCS / "reference" / "policy.md"


def runs(block: Block):
    """The commands of a console block, each with the output that stands behind it."""
    found = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], []])
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0] += "\n" + line[2:]
        else:
            found[-1][1].append(line)
    return found


def run(command, directory):
    """What a terminal shows: standard output and standard error in the order in which they are written."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STRONGROOM_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 6), done.stdout
    return [line.rstrip() for line in done.stdout.splitlines()]


def titled(page, directory):
    (directory / "evidence").symlink_to(ROOT / "tests" / "attest" / "data")
    for block in blocks(page):
        if block.title:
            (directory / block.title).write_text(block.text)


@pytest.mark.slow
def test_the_cookbook_prints_what_its_commands_print(tmp_path):
    for module in ("typer", "dcap_qvl", "cbor2", "joserfc", "lxml"):
        pytest.importorskip(module, reason="the cookbook verifies evidence of every kind")
    titled(COOKBOOK, tmp_path)
    count = 0
    for block in blocks(COOKBOOK):
        for command, shown in runs(block) if block.language == "console" else []:
            assert run(command, tmp_path) == [line.rstrip() for line in shown], command
            count += 1
    assert count > 25


def sections(page):
    text = page.read_text()
    parts = re.split(r"^#{2,3} (.+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(text):
    return set(re.findall(r"^\| `([a-z0-9_-]+)` \|", text, re.M))


def test_the_reference_has_every_member():
    found = sections(REFERENCE)
    assert rows(found["The document"]) == set(_KNOWN)
    for kind, one in KINDS.items():
        assert rows(found[f"`{kind}`"]) == set(one.members), kind
    assert rows(found["Codes"]) == set(CODES)


def test_the_reference_has_the_numbers_of_the_modules():
    text = " ".join(REFERENCE.read_text().split())
    for number in (
        limits.DEFAULT_LEASE,
        limits.MIN_LEASE,
        limits.MAX_LEASE,
        limits.DEFAULT_ATTEST_AGAIN,
    ):
        assert re.search(rf"\b{number}\b", text), number
