"""The core of the key server, attacked with evidence that is real in all but what is wrong with it.

The store, the verification processes, the quotes (in Intel's format, under a test root) and the
cryptography are the real ones; only the network is left out.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from stores import BUNDLE, OWNER, Store, kek

from strongroom.attest import roots
from strongroom.attest.evidence import Claims, Evidence
from strongroom.crypto.hpke import MLKEM768X25519, X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import ReleaseDenied, Unavailable, UntrustedAnswer
from strongroom.keyserver.release import ReleaseService
from strongroom.keyserver.verification import VerificationPool
from strongroom.release.answer import Refused, Released, open_answer
from strongroom.release.binding import WantedKey
from strongroom.release.messages import ReleaseRequest
from strongroom.release.names import KeyName
from strongroom.testing.intel import IntelPki
from strongroom.testing.nvidia import NvidiaPki

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SERVER = "https://keys.example"
MR_TD, RTMR1 = b"\x42" * 48, b"\x17" * 48
DEK = bytes(range(100, 132))
TDX = {"kind": "tdx", "mr_td": [MR_TD.hex()], "rtmr": {"1": [RTMR1.hex()]}}
PKI = IntelPki.create(NOW - timedelta(days=1))
GPUS = NvidiaPki(NOW - timedelta(days=1))
ROOTS = GPUS.roots(PKI.roots(roots.production()))


class Place:
    """A store for tests with one key and one policy, and the core over it."""

    def __init__(self, url, **policy):
        self.now = NOW
        self.store = Store.create(url, kek(), clock=lambda: self.now, test=True)
        self.store.add_key("m/x", None, BUNDLE, SecretBytes(DEK), OWNER, {})
        document = {"id": "p", "version": 1, "keys": ["m/"], "any": [TDX], "test_roots": True}
        self.policy = document | policy
        self.store.put_policy(self.policy, OWNER)

    def put(self, **changes):
        self.policy = self.policy | {"version": self.policy["version"] + 1} | changes
        self.store.put_policy(self.policy, OWNER)

    def run(self, use, *, server_id=SERVER, allow_test_roots=True):
        async def inside():
            pool = VerificationPool(ROOTS, workers=1, timeout=20)
            await pool.start()
            service = ReleaseService(
                self.store,
                server_id=server_id,
                pool=pool,
                clock=lambda: self.now,
                allow_test_roots=allow_test_roots,
            )
            try:
                return await use(service)
            finally:
                pool.close()

        return asyncio.run(inside())

    def records(self):
        return [one for one in self.store.audit(0, 1000) if one["event"].startswith("release")]


@pytest.fixture
def place(tmp_path):
    made = Place(f"sqlite:///{tmp_path}/keyserver.db")
    yield made
    made.store.close()


class Attester:
    """A machine with a one-time key; every step of it can be done wrongly."""

    def __init__(self, *wanted, suite=MLKEM768X25519):
        self.suite = suite
        self.secret = SecretBytes.random(suite.secret_size)
        self.public = suite.public_of(self.secret)
        self.wanted = wanted or (WantedKey(KeyName("m/x"), BUNDLE),)

    def request(self, challenge):
        return ReleaseRequest(challenge.challenge, self.suite.alg, self.public, self.wanted)

    def binding(self, challenge):
        return self.request(challenge).binding(challenge.server_id)

    def quote(self, bound, pki=PKI, **parts):
        quote = pki.tdx_quote(bound, **{"mr_td": MR_TD, "rtmr1": RTMR1, **parts})
        return Evidence("tdx", quote, (pki.collateral("tdx"),))

    def attest(self, challenge, **parts):
        evidence = self.quote(self.binding(challenge).for_primary("tdx"), **parts)
        return replace(self.request(challenge), evidence=(evidence,))

    def open(self, answer, challenge, service):
        signed_by = service._signing.public_key().public_bytes_raw()
        _, results = open_answer(answer, self.binding(challenge), self.secret, signed_by)
        return results


def ask(place, attester=None, make=None, **run):
    """One release; ``make(attester, challenge)`` is what is sent."""
    attester = attester or Attester()

    async def use(service):
        challenge = service.challenge()
        request = make(attester, challenge) if make else attester.attest(challenge)
        answer = await service.release(request, (), "192.0.2.1")
        return attester.open(answer, challenge, service)

    return place.run(use, **run)


def refusal(place, *arguments, **options):
    (result,) = ask(place, *arguments, **options)
    assert isinstance(result, Refused)
    return result.code


@pytest.mark.parametrize("suite", [MLKEM768X25519, X25519])
def test_a_key_for_the_right_machine(place, suite):
    (released,) = ask(place, Attester(suite=suite))
    assert isinstance(released, Released)
    assert released.dek == SecretBytes(DEK)
    assert released.version == 1
    assert released.lease.not_after == NOW + timedelta(hours=1)
    (record,) = place.records()
    assert record["details"]["keys"][0]["code"] == "released"
    assert record["details"]["evidence"][0]["values"]["mr_td"] == MR_TD.hex()
    assert DEK.hex() not in str(record)


def other_key(attester, challenge):
    good = attester.attest(challenge)
    return replace(good, public_key=Attester().public)


def other_list(attester, challenge):
    good = attester.attest(challenge)
    return replace(good, keys=(WantedKey(KeyName("m/x", 1), BUNDLE),))


def other_challenge(attester, challenge):
    evidence = attester.quote(
        attester.binding(replace(challenge, challenge=bytes(32))).for_primary("tdx")
    )
    return replace(attester.request(challenge), evidence=(evidence,))


def other_server(attester, challenge):
    binding = attester.request(challenge).binding("https://keys.example.net")
    return replace(attester.request(challenge), evidence=(attester.quote(binding.for_primary("tdx")),))


def truncated_binding(attester, challenge):
    """As Trustee accepts it: half of the report data."""
    bound = attester.binding(challenge).for_primary("tdx")
    return replace(attester.request(challenge), evidence=(attester.quote(bound[:32].ljust(64, b"\0")),))


def unannounced_gpu(attester, challenge):
    """Secondary evidence that the processor does not vouch for: of a GPU elsewhere."""
    gpu = GPUS.evidence(attester.binding(challenge).for_secondary())
    return replace(attester.attest(challenge), evidence=(*attester.attest(challenge).evidence, gpu))


@pytest.mark.parametrize(
    "make",
    [other_key, other_list, other_challenge, other_server, truncated_binding, unannounced_gpu],
)
def test_evidence_for_something_else(place, make):
    def made(attester, challenge):
        request = make(attester, challenge)
        # What the answer is compared with is what was sent.
        attester.public, attester.wanted = request.public_key, request.keys
        return request

    assert refusal(place, Attester(), made) == "binding"


def test_relayed_evidence_opens_nothing(place):
    """An attacker shows the evidence of a good machine with his own request, or its answer to himself."""
    good, thief = Attester(), Attester()

    async def use(service):
        challenge = service.challenge()
        answer = await service.release(good.attest(challenge), (), "")
        with pytest.raises(UntrustedAnswer):
            thief.open(answer, challenge, service)
        stolen = replace(good.attest(service.challenge()), public_key=thief.public)
        with pytest.raises(ReleaseDenied):  # of the first challenge
            await service.release(replace(stolen, challenge=challenge.challenge), (), "")
        return good.open(answer, challenge, service)

    (released,) = place.run(use)
    assert isinstance(released, Released)


def with_gpu(attester, challenge, bound=None):
    gpu = GPUS.evidence(bound or attester.binding(challenge).for_secondary())
    gpu = replace(gpu, endorsements=(*gpu.endorsements, *GPUS.manifests()))
    evidence = attester.quote(attester.binding(challenge).for_primary("tdx", [gpu]))
    return replace(attester.request(challenge), evidence=(evidence, gpu))


def test_a_gpu_that_the_processor_vouches_for(place):
    place.put(any=[{**TDX, "with": [{"kind": "nvidia", "arch": ["HOPPER"], "count": 1}]}])
    assert refusal(place) == "policy"  # without one
    (released,) = ask(place, make=with_gpu)
    assert isinstance(released, Released), place.records()[-1]
    assert refusal(place, make=lambda *both: with_gpu(*both, bound=bytes(32))) == "binding"


def test_a_gpu_alone_is_nobody(place):
    def gpu_only(attester, challenge):
        gpu = GPUS.evidence(attester.binding(challenge).for_primary("nvidia"))
        return replace(attester.request(challenge), evidence=(gpu,))

    assert refusal(place, make=gpu_only) in ("evidence", "policy", "binding")


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"mr_td": bytes(48)}, "policy"),
        ({"rtmr1": bytes(48)}, "policy"),
        ({"debug": True}, "evidence"),
        ({"qe_svn": 0}, "evidence"),
    ],
    ids=str,
)
def test_machines_that_are_not_right(place, parts, code):
    found = refusal(place, make=lambda attester, challenge: attester.attest(challenge, **parts))
    assert found in (code, "policy")
    (record,) = place.records()
    said = record["details"]
    assert said["problem"] or said["keys"][0]["reasons"]


def collateral(**options):
    def make(attester, challenge):
        good = attester.attest(challenge)
        endorsed = replace(good.evidence[0], endorsements=(PKI.collateral("tdx", **options),))
        return replace(good, evidence=(endorsed,))

    return make


@pytest.mark.parametrize("status", ["OutOfDate", "ConfigurationNeeded", "SWHardeningNeeded", "Revoked"])
def test_a_status_other_than_up_to_date(place, status):
    assert refusal(place, make=collateral(status=status)) in ("policy", "evidence")


@pytest.mark.parametrize("days", [-400, 400])
def test_collateral_of_another_time(place, days):
    assert refusal(place, make=collateral(issued=NOW + timedelta(days=days))) == "evidence"


def test_a_revocation_list_that_is_older_than_one_seen_before(place):
    (released,) = ask(place, make=collateral(crl_number=7))
    assert isinstance(released, Released)
    assert refusal(place, make=collateral(crl_number=6)) == "evidence"
    (reason, other) = place.records()[-1]["details"]["keys"][0]["reasons"]
    assert reason["path"] == other["path"] == "evidence[0].crls"
    assert "has the number 6, and 7 was seen before" in reason["text"]
    # A list without a number is older than any; and it is no way around it.
    assert refusal(place, make=collateral(crl_number=None)) == "evidence"
    # Newer ones are taken, and remembered by all replicas.
    (released,) = ask(place, make=collateral(crl_number=1000))
    assert isinstance(released, Released)
    assert set(place.store.snapshot().newest_crls.values()) == {1000}
    assert refusal(place, make=collateral(crl_number=7)) == "evidence"
    seen = [one for one in place.store.audit(0, 1000) if one["event"] == "crl.newer"]
    assert [set(one["details"]["crls"].values()) for one in seen] == [{"7"}, {f"{1000:x}"}]
    assert place.store.verify()


def test_a_revocation_list_with_a_number_that_is_none(place):
    assert refusal(place, make=collateral(crl_number=2**168)) == "evidence"
    assert not place.store.snapshot().newest_crls


def test_replicas_that_see_a_new_revocation_list_at_once(tmp_path, database_url):
    with Store.create(database_url, kek()) as one, Store(database_url, kek()) as other:
        numbers = [{"CN=a": number} for number in range(1, 25)]
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda use: use[0].crls_seen(use[1]),
                    [(store, number) for number in numbers for store in (one, other)],
                )
            )
        assert one.snapshot().newest_crls == other.snapshot().newest_crls == {"CN=a": 24}
        seen = [
            int(r["details"]["crls"]["CN=a"], 16) for r in one.audit(0, 1000) if "crls" in r["details"]
        ]
        assert seen == sorted(set(seen))
        assert one.verify()


def test_no_collateral_and_nobody_to_ask(place):
    def bare(attester, challenge):
        good = attester.attest(challenge)
        return replace(good, evidence=(replace(good.evidence[0], endorsements=()),))

    assert refusal(place, make=bare) == "evidence"


def test_another_pki_is_nobody(place):
    stranger = IntelPki.create(NOW - timedelta(days=1))

    def make(attester, challenge):
        bound = attester.binding(challenge).for_primary("tdx")
        return replace(attester.request(challenge), evidence=(attester.quote(bound, pki=stranger),))

    assert refusal(place, make=make) == "evidence"


def test_evidence_under_a_test_root_in_production(place):
    assert refusal(place, allow_test_roots=False) in ("evidence", "policy")


def test_without_evidence_nobody_learns_which_keys_there_are(place):
    attester = Attester(WantedKey(KeyName("m/x"), BUNDLE), WantedKey(KeyName("no/such"), BUNDLE))
    results = ask(place, attester, lambda one, challenge: one.request(challenge))
    assert [one.code for one in results] == ["evidence", "evidence"]


def test_codes_of_keys(place):
    place.store.add_key("m/x", None, bytes(16), SecretBytes.random(32), OWNER, {})
    place.store.add_key("n/y", None, bytes(16), SecretBytes.random(32), OWNER, {})
    place.store.add_key("m/r", None, bytes(16), SecretBytes.random(32), OWNER, {})
    place.store.set_state("m/r", 1, "revoked", OWNER, "stolen")
    place.store.rotate("m/x", 2, OWNER)
    wanted = {
        WantedKey(KeyName("m/x"), bytes(16)): None,
        WantedKey(KeyName("m/x"), BUNDLE): "bundle",
        WantedKey(KeyName("m/x", 1), BUNDLE): "policy",  # an older version, which nothing allows
        WantedKey(KeyName("m/x", 7), BUNDLE): "unknown-key",
        WantedKey(KeyName("m/z"), BUNDLE): "unknown-key",
        WantedKey(KeyName("n/y"), bytes(16)): "no-policy",
        WantedKey(KeyName("m/r"), bytes(16)): "revoked",
    }
    results = ask(place, Attester(*wanted))
    assert [getattr(one, "code", None) for one in results] == list(wanted.values())


def test_the_machine_is_told_a_code_and_no_reason(place):
    seen = {}

    async def use(service):
        challenge = service.challenge()
        seen.update(await service.release(Attester().attest(challenge, mr_td=bytes(48)), (), ""))

    place.run(use)
    from strongroom.format.encoding import unb64url_text

    assert MR_TD.hex().encode() not in unb64url_text(seen["payload"])
    (record,) = place.records()
    assert MR_TD.hex() in str(record["details"]["keys"][0]["reasons"])


def test_a_challenge_is_used_up_by_a_failure(place):
    attester = Attester()

    async def use(service):
        challenge = service.challenge()
        await service.release(other_server(attester, challenge), (), "")
        with pytest.raises(ReleaseDenied) as caught:
            await service.release(attester.attest(challenge), (), "")
        return caught.value.code

    assert place.run(use) == "challenge"


def test_a_challenge_used_many_times_at_once(place):
    attester = Attester()

    async def use(service):
        challenge = service.challenge()
        request = attester.attest(challenge)
        return await asyncio.gather(
            *(service.release(request, (), "") for _ in range(10)), return_exceptions=True
        )

    found = place.run(use)
    assert sum(isinstance(one, dict) for one in found) == 1
    assert all(one.code == "challenge" for one in found if not isinstance(one, dict))


def test_releases_wait_for_one_whose_evidence_is_being_verified(place, monkeypatch):
    coming, writer = [], place.store._writer

    async def use(service):
        verify, commit = service._pool.verify, writer._commit

        async def watched(*arguments):
            coming.append(len(writer._coming))
            return await verify(*arguments)

        def committing(writes):
            coming.append(len(writer._coming))
            return commit(writes)

        monkeypatch.setattr(service._pool, "verify", watched)
        monkeypatch.setattr(writer, "_commit", committing)
        attester, challenge = Attester(), service.challenge()
        await service.release(attester.attest(challenge), (), "x")

    place.run(use)
    assert coming == [1, 0]


def test_a_policy_that_changes_while_it_is_decided(place, monkeypatch):
    """Between the decision and the commit the owner asks for another machine: that counts."""
    commit, changed = place.store.commit_release, []

    def first_the_owner(write, coming):
        if not changed:
            changed.append(place.put(any=[{**TDX, "mr_td": ["ab" * 48]}]))
        return commit(write, coming)

    monkeypatch.setattr(place.store, "commit_release", first_the_owner)
    assert refusal(place) == "policy"
    assert len(place.records()) == 1


def test_policies_that_never_stand_still(place, monkeypatch):
    commit = place.store.commit_release

    def first_the_owner(write, coming):
        place.put()
        return commit(write, coming)

    monkeypatch.setattr(place.store, "commit_release", first_the_owner)
    with pytest.raises(Unavailable, match="faster"):
        ask(place)
    assert place.records() == []


def test_a_malleated_quote_is_the_same_machine(place):
    """Bits of a quote that nothing signs can be changed; what is on record does not change with them."""

    def malleated(attester, challenge):
        good = attester.attest(challenge)
        changed = bytearray(good.evidence[0].data)
        changed[-1:] = bytes([changed[-1] ^ 1]) if changed[-1] in (0, 10) else changed[-1:]
        return replace(good, evidence=(replace(good.evidence[0], data=bytes(changed)),))

    attester = Attester()
    ask(place, attester)
    ask(place, attester, malleated)
    first, second = (one["details"]["evidence"][0] for one in place.records())
    assert first["platform"] == second["platform"]
    assert first["values"] == second["values"]


def test_shadow_policies_are_recorded_and_change_nothing(place):
    shadow = {**place.policy, "id": "s", "shadow": True, "any": [{**TDX, "mr_td": ["ab" * 48]}]}
    place.store.put_policy(shadow, OWNER)
    (released,) = ask(place)
    assert isinstance(released, Released)
    (record,) = place.records()
    said = record["details"]["keys"][0]["shadow"]["s"]
    assert said["allowed"] is False
    assert "mr_td" in str(said["reasons"])


def test_one_machine_too_many(place):
    place.put(lease={"seconds": 600, "max_holders": 1})
    (released,) = ask(place)
    assert isinstance(released, Released)
    (again,) = ask(place)
    assert isinstance(again, Released)
    other = PKI.another(ppid=b"\x99" * 16, piid=b"\x98" * 16)

    def make(attester, challenge):
        bound = attester.binding(challenge).for_primary("tdx")
        return replace(attester.request(challenge), evidence=(attester.quote(bound, pki=other),))

    assert refusal(place, make=make) == "holders"
    assert place.records()[-1]["details"]["keys"][0]["code"] == "holders"
    place.now += timedelta(minutes=11)
    (released,) = ask(place, make=make)
    assert isinstance(released, Released)


def test_who_holds_a_key_is_whom_the_policy_is_about(place):
    """Evidence that the policy does not ask for is bound to nothing: it may be a recorded one of another."""
    place.put(any=[TDX, {"kind": "mtls", "subject": ["CN=a", "CN=b"]}], lease={"max_holders": 2})
    (machine,) = ask(place)
    recorded = Attester().quote(bytes(64), mr_td=b"\x43" * 48)

    def identity(name):
        values = {"subject": f"CN={name}"}
        end = NOW + timedelta(days=1)
        return Claims("mtls", values, b"", False, f"mtls:{name}", end)

    async def use(service):
        found = []
        for name in "ab":
            attester, challenge = Attester(), service.challenge()
            request = replace(attester.request(challenge), evidence=(recorded,))
            answer = await service.release(request, [identity(name)], "")
            found += attester.open(answer, challenge, service)
        return found

    first, second = place.run(use)
    assert isinstance(first, Released)
    assert isinstance(second, Refused) and second.code == "holders"
    assert place.records()[-2]["platform"] == "mtls:a"
    # Nor does it take the lease of the machine whose evidence it is.
    leases = [machine.lease.id, first.lease.id]
    assert not [one for one in place.store.renew(leases, NOW, True) if "refused" in one]
    # And who is evicted loses the lease at once.
    place.store.evict("mtls:a", OWNER, "stolen")
    assert [one.get("refused") for one in place.store.renew(leases, NOW, True)] == [None, "evicted"]


def test_evidence_that_was_bound_to_nothing_renews_nothing(place):
    """Let in by an identity, with recorded evidence of a good machine beside it, which the next policy wants."""
    identity = {"kind": "mtls", "subject": "CN=a"}
    place.put(any=[TDX, identity])
    recorded, attester = Attester().quote(bytes(64)), Attester()
    known = Claims("mtls", {"subject": "CN=a"}, b"", False, "mtls:a", NOW + timedelta(days=1))

    async def use(service):
        challenge = service.challenge()
        request = replace(attester.request(challenge), evidence=(recorded,))
        return attester.open(await service.release(request, [known], ""), challenge, service)

    (released,) = place.run(use)
    assert isinstance(released, Released)
    assert "refused" not in place.store.renew([released.lease.id], NOW, True)[0]
    place.put(any=[TDX])
    assert place.store.renew([released.lease.id], NOW, True)[0]["refused"] == "policy"


def test_an_identity_does_not_make_up_for_evidence_that_is_none(place):
    place.put(any=[{"kind": "mtls", "subject": "CN=a"}])
    known = Claims("mtls", {"subject": "CN=a"}, b"", False, "mtls:a", NOW + timedelta(days=1))
    attester = Attester()

    async def use(service):
        codes = []
        for evidence in ((), (Evidence("tdx", b"no quote"),)):
            challenge = service.challenge()
            request = replace(attester.request(challenge), evidence=evidence)
            answer = await service.release(request, [known], "")
            (result,) = attester.open(answer, challenge, service)
            codes.append(getattr(result, "code", "released"))
        return codes

    assert place.run(use) == ["released", "evidence"]


def test_an_evicted_machine(place):
    ask(place)
    (node,) = place.store.nodes()
    place.store.evict(node.platform, OWNER, "stolen")
    assert refusal(place) == "evicted"


def test_renewals_are_signed_and_answer_this_question(place):
    from strongroom.format.encoding import b64url
    from strongroom.release.answer import verify_signed

    attester = Attester()

    async def use(service):
        challenge = service.challenge()
        (released,) = attester.open(
            await service.release(attester.attest(challenge), (), ""), challenge, service
        )
        place.now += timedelta(minutes=30)
        signed = await service.renew({"nonce": b64url(bytes(32)), "leases": [released.lease.id]})
        payload = verify_signed(signed, service._signing.public_key().public_bytes_raw())
        assert payload["nonce"] == b64url(bytes(32))
        assert payload["results"][0]["not_after"] == "2026-03-01T13:30:00.000Z"
        place.put(any=[{**TDX, "mr_td": ["ab" * 48]}])
        refused = verify_signed(
            await service.renew({"nonce": b64url(bytes(32)), "leases": [released.lease.id]}),
            service._signing.public_key().public_bytes_raw(),
        )
        return refused["results"]

    (result,) = place.run(use)
    assert result["refused"] == "policy"
