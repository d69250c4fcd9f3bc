"""Decisions about clients of Gramine over a real store and real verification; only the network is left out."""

from __future__ import annotations

import asyncio
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from gramine_server import DEK, client, policy
from stores import BUNDLE, OWNER, Store, kek

from strongroom.attest import roots
from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources.files import DirectorySource
from strongroom.crypto.derive import gramine_wrap_key
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import Unavailable
from strongroom.keyserver.challenges import Challenges
from strongroom.keyserver.gramine.provisioning import Provisioning
from strongroom.keyserver.verification import VerificationPool
from strongroom.testing.intel import IntelPki

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PKI = IntelPki.create(NOW - timedelta(days=1))


@pytest.fixture
def provision(tmp_path):
    """What a machine that the policy knows gets, where a commit comes so long after the decision."""
    wanted = {"tee": "sgx", "fmspc": PKI.fmspc.hex().upper(), "ca": "platform"}
    (tmp_path / "endorsements").mkdir()
    DirectorySource(tmp_path / "endorsements").store(Wanted("intel", wanted), PKI.collateral("sgx"))
    times = {"commit": NOW}
    url = f"sqlite:///{tmp_path}/keyserver.db"
    with closing(Store.create(url, kek(), clock=lambda: times["commit"], test=True)) as store:
        store.add_key("models/net", None, BUNDLE, SecretBytes(DEK), OWNER, {})
        store.put_policy(policy(), OWNER)
        challenges = Challenges(store.secret("challenge"), "https://keys.example")

        async def ask():
            pool = VerificationPool(
                PKI.roots(roots.production()), [f"files:{tmp_path}/endorsements"], workers=1, timeout=60
            )
            await pool.start()
            try:
                decides = Provisioning(
                    store,
                    pool=pool,
                    challenge=lambda: challenges.make(NOW),
                    clock=lambda: NOW,
                    allow_test_roots=True,
                )
                return await decides.provision(client(PKI).certificate(), None, "127.0.0.1")
            finally:
                pool.close()

        def after(seconds):
            times["commit"] = NOW + timedelta(seconds=seconds)
            return asyncio.run(ask())

        after.store = store
        yield after


def granted(store):
    return [
        key
        for one in store.audit(0, 1000)
        if one["event"] == "release"
        for key in one["details"]["keys"]
        if key["code"] == "released"
    ]


def test_what_is_given_is_on_record(provision):
    with gramine_wrap_key(SecretBytes(DEK), BUNDLE) as expected:
        assert provision(0) == expected
    assert len(granted(provision.store)) == 1


def test_nothing_is_given_without_a_lease(provision):
    # A database that is held up for longer than a challenge lasts writes no lease.
    with pytest.raises(Unavailable, match="in time"):
        provision(61)
    assert granted(provision.store) == []
