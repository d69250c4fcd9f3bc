"""The audit chain: whatever is done to it is found, and said of the right record."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from strongroom.errors import AuditBroken
from strongroom.release.audit import GENESIS, Head, record_hash, verify_chain


def chain(count, store="s", start=GENESIS, changed_at=None):
    records, head = [], start
    for index in range(start.sequence + 1, start.sequence + count + 1):
        record = {
            "v": 1,
            "store": store,
            "sequence": index,
            "previous": head.hash,
            "time": f"2026-03-01T12:00:{index % 60:02}.000000Z",
            "event": "release",
            "details": {"n": index, "text": "straße" if index != changed_at else "strasse"},
        }
        head = Head(index, record_hash(record))
        records.append({**record, "hash": head.hash})
    return records


def head_of(records):
    return Head(records[-1]["sequence"], records[-1]["hash"])


def broken(records, match, **options):
    with pytest.raises(AuditBroken, match=match):
        verify_chain(records, **options)


def test_a_whole_chain_ends_at_its_last_record():
    records = chain(20)
    assert verify_chain(records) == head_of(records)
    assert verify_chain([]) == GENESIS


def test_the_hash_is_the_one_of_the_documentation():
    record = chain(1)[0]
    content = {name: value for name, value in record.items() if name != "hash"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert record["hash"] == hashlib.sha256(b"strongroom/v1/audit\0" + text.encode()).hexdigest()


def test_a_chain_can_be_checked_in_pieces():
    records = chain(20)
    middle = verify_chain(records[:7])
    assert verify_chain(records[7:], middle) == head_of(records)
    broken(records[8:], "record 8 was left out", start=middle)
    broken(records[6:], "record 8 was added", start=middle)


@pytest.mark.parametrize("index", range(10))
def test_every_changed_member_of_every_record_is_found(index):
    for name in ("v", "store", "sequence", "previous", "time", "event", "details", "hash"):
        records = chain(10)
        value = records[index][name]
        if name == "sequence":
            changed = value + 1
        elif name == "details":
            changed = {**value, "n": -1}
        else:
            changed = 2 if name == "v" else value[:-1] + ("0" if value[-1] != "0" else "1")
        records[index] = {**records[index], name: changed}
        broken(records, f"record {index + 1} was")
    records = chain(10)
    records[index] = {**records[index], "more": 1}
    broken(records, f"record {index + 1} was changed")
    records[index] = {name: value for name, value in chain(10)[index].items() if name != "details"}
    broken(records, f"record {index + 1} is no record")


@pytest.mark.parametrize("index", range(9))
def test_every_record_left_out_added_or_exchanged_is_found(index):
    records = chain(10)
    broken(records[:index] + records[index + 1 :], f"record {index + 1} was left out")
    broken(records[: index + 1] + records[index:], f"record {index + 2} was added")
    swapped = [*records]
    swapped[index], swapped[index + 1] = swapped[index + 1], swapped[index]
    broken(swapped, f"record {index + 1} was left out")
    other = chain(10, changed_at=index + 1)[: index + 1]
    if index < 9:
        broken(other + records[index + 1 :], f"record {index + 2} does not follow record {index + 1}")


def test_a_tail_that_was_cut_is_found_by_a_kept_head():
    records = chain(10)
    kept = head_of(records)
    verify_chain(records[:6])  # nobody can know
    broken(records[:6], "ends at record 6, and record 10 is known", known=[kept])
    broken([], "ends at record 0", known=[kept])


def test_a_chain_computed_anew_is_found_by_a_kept_head():
    kept = head_of(chain(8))
    forged = chain(10, changed_at=3)
    assert verify_chain(forged) == head_of(forged)
    broken(forged, "record 8 was changed: its hash is not the one that was kept", known=[kept])
    longer = chain(10)
    assert verify_chain(longer, known=[kept, head_of(longer)]) == head_of(longer)
    broken(longer, "disagree about record 8", known=[kept, Head(8, "0" * 64)])


def test_records_of_another_store_and_of_another_time_are_found():
    records = chain(3)
    broken(records + chain(2, store="t", start=head_of(records)), "record 4 is of another store")
    record = {**chain(1, start=head_of(records))[0], "time": "2026-03-01T11:59:59.000000Z"}
    record["hash"] = record_hash(record)
    broken([*records, record], "record 4 is older than the one before it")
    record["event"] = "clock.accepted"
    record["hash"] = record_hash(record)
    verify_chain([*records, record])


@pytest.mark.parametrize("junk", [{}, {"sequence": 1}, {"sequence": "1"}, {"sequence": True}])
def test_what_is_no_record_is_refused(junk):
    broken([junk], "record 1 is no record")


@pytest.mark.parametrize("member", ["hash", "previous", "store", "time", "event", "details", "v"])
def test_a_record_that_lacks_a_member_and_has_another_is_none(member):
    (record,) = chain(1)
    lacking = {name: value for name, value in record.items() if name != member}
    broken([{**lacking, "revision": 1, "more": 2}], "record 1 is no record")


def test_a_record_without_canonical_form_is_a_changed_one():
    record = {**chain(1)[0], "details": {"n": 1.5}}
    broken([record], "record 1 was changed")


def test_messages_hold_no_details():
    records = chain(3)
    records[1] = {**records[1], "details": {"secret": "hunter2"}}
    with pytest.raises(AuditBroken) as caught:
        verify_chain(records)
    assert not re.search("hunter2", str(caught.value) + str(caught.value.hint))
