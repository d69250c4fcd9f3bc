"""Which versions are there, and which of them a policy wants."""

from __future__ import annotations

import os
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom.errors import NotFound, UsageError
from strongroom.serving.config import Batching, ClientRule, Limits, ModelConfig, VersionPolicy
from strongroom.serving.versions import find_versions

NUMBERS = st.integers(0, 2**63 - 1)
POLICIES = st.one_of(
    st.builds(VersionPolicy, latest=st.integers(1, 5)),
    st.just(VersionPolicy(all=True)),
    st.builds(VersionPolicy, specific=st.lists(NUMBERS, min_size=1, max_size=5).map(tuple)),
)


@given(POLICIES, st.lists(NUMBERS, max_size=12))
def test_what_a_policy_wants(policy, present):
    wanted = policy.wanted(present)
    assert list(wanted) == sorted(set(wanted), reverse=True)
    assert set(wanted) <= set(present)
    if policy.all:
        assert set(wanted) == set(present)
    elif policy.specific:
        assert set(wanted) == set(present) & set(policy.specific)
    else:
        assert len(wanted) == min(policy.latest, len(set(present)))
        assert all(one < min(wanted) for one in set(present) - set(wanted))


@given(POLICIES, st.lists(NUMBERS, max_size=12), NUMBERS)
def test_another_version_takes_nothing_away_but_from_the_latest(policy, present, another):
    before, after = set(policy.wanted(present)), set(policy.wanted([*present, another]))
    assert after - before <= {another}
    if policy.all or policy.specific:
        assert before <= after
    else:
        assert len(before - after) <= 1
        assert not before - after or another in after


NAMES = st.one_of(
    NUMBERS.map(str),
    st.integers(0, 99).map("{:04d}".format),
    st.sampled_from(["-1", "+1", " 1", "1.0", "1e3", "0x1", "1_0", "٣", "²", "v1", ".1", "tmp"]),
    st.integers(2**63, 2**80).map(str),
    st.text("0123456789", min_size=20, max_size=200),
)


@given(st.sets(NAMES, min_size=1, max_size=8))
def test_folders_with_numbers_for_names(tmp_path_factory, names):
    root = tmp_path_factory.mktemp("versions")
    try:
        for name in names:
            (root / name).mkdir()
            (root / name / "m.sealed").write_bytes(b"x")
        decimal = [one for one in names if one.isascii() and one.isdigit()]
        numbers = {int(one) for one in decimal if len(one) < 20 and int(one) < 2**63}
        if not numbers:
            with pytest.raises(UsageError, match="no folder of a version"):
                find_versions(str(root))
            return
        found = find_versions(str(root))
        assert found.keys() == numbers
        assert find_versions(str(root)) == found
        for number, place in found.items():
            assert int(os.path.basename(os.path.dirname(place.location))) == number
    finally:
        shutil.rmtree(root)


def test_a_sealed_model_alone_is_version_1(tmp_path):
    file = tmp_path / "m.sealed"
    file.write_bytes(b"x")
    assert find_versions(str(file))[1].location == str(file)
    assert find_versions(f"file://{file}")[1].location == str(file)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "MANIFEST.sealed").write_bytes(b"x")
    (folder / "7").mkdir()  # a file of the model, and no version
    assert find_versions(str(folder))[1].location == str(folder)
    assert find_versions("s3://bucket/model.sealed")[1].stamp == ()


def test_what_a_folder_of_a_version_holds(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "one.sealed").write_bytes(b"x")
    (tmp_path / "1" / ".hidden").write_bytes(b"x")
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "MANIFEST.sealed").write_bytes(b"x")
    (tmp_path / "2" / "other.sealed").write_bytes(b"x")
    (tmp_path / "3").mkdir()
    (tmp_path / "4").write_bytes(b"a file is no version")
    (tmp_path / "5").symlink_to(tmp_path / "1")
    (tmp_path / "6").symlink_to(tmp_path / "6")
    found = find_versions(str(tmp_path))
    assert {number: os.path.relpath(one.location, tmp_path) for number, one in found.items()} == {
        1: "1/one.sealed",
        2: "2",
        3: "3",
        5: "5/one.sealed",
        6: "6",
    }


def test_a_replaced_version_has_another_stamp(tmp_path):
    (tmp_path / "1").mkdir()
    file = tmp_path / "1" / "MANIFEST.sealed"
    file.write_bytes(b"x")
    before = find_versions(str(tmp_path))[1]
    assert find_versions(str(tmp_path))[1] == before
    new = tmp_path / "1" / ".new"
    new.write_bytes(b"y")
    os.replace(new, file)
    assert find_versions(str(tmp_path))[1].stamp != before.stamp


def test_nothing_is_there(tmp_path):
    with pytest.raises(NotFound, match="is empty"):
        find_versions(str(tmp_path))
    with pytest.raises(NotFound):
        find_versions(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (VersionPolicy, {"latest": 0}),
        (Batching, {"max_batch": 0}),
        (Batching, {"delay": -1}),
        (Batching, {"delay": 11}),
        (Limits, {"concurrency": 0}),
        (Limits, {"queue": -1}),
        (Limits, {"timeout": 0}),
        (ClientRule, {}),
        (ClientRule, {"subject": "a", "name": "b"}),
        (ModelConfig, {"name": "", "path": "p"}),
        (ModelConfig, {"name": "a/b", "path": "p"}),
        (ModelConfig, {"name": ".a", "path": "p"}),
        (ModelConfig, {"name": "a" * 201, "path": "p"}),
    ],
    ids=range(13),
)
def test_values_that_cannot_be(kind, arguments):
    with pytest.raises(UsageError):
        kind(**arguments)
