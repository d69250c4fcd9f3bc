"""What a release has sealed stays readable, for ever. Nothing in these directories is ever written again."""

import hashlib
import json
from pathlib import Path

import pytest

import strongroom
from strongroom import Passphrase

RELEASES = sorted(Path(__file__).parent.glob("release-*"))


def keys(release):
    yield from (release / name for name in ("key.txt", "identity.txt", "identity-x25519.txt"))
    yield Passphrase((release / "passphrase.txt").read_text())


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_release_is_readable_with_every_key(release):
    expected = json.loads((release / "sha256.json").read_text(encoding="utf-8"))
    for key in keys(release):
        found = {}
        for stored, prefix in (("model", "model/"), ("single.bin.sealed", "")):
            with strongroom.open(release / stored, key=key) as model:
                assert model.verify() == sum(info.size for info in model.files.values())
                assert model.meta["version"] == "1"
                for path in model.files:
                    found[prefix + path] = hashlib.sha256(model.read(path)).hexdigest()
        assert found == expected


def test_there_is_one():
    assert next(path.name for path in RELEASES) == "release-0.1.0"
