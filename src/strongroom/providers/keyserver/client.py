"""The client's half of the release protocol: challenge, evidence, answer; renewals, and the end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

from strongroom.attest.collect import Collector, open_collector
from strongroom.attest.evidence import Evidence
from strongroom.crypto.hpke import MLKEM768X25519
from strongroom.crypto.secret import SecretBytes
from strongroom.errors import UntrustedAnswer, UsageError
from strongroom.format.encoding import b64url
from strongroom.providers.keyserver.denial import denied
from strongroom.providers.keyserver.profile import Profile
from strongroom.providers.keyserver.transport import Transport
from strongroom.release.answer import Lease, Refused, Released, open_answer, verify_signed
from strongroom.release.binding import Binding, WantedKey
from strongroom.release.messages import Challenge, ReleaseRequest, parse_time

__all__ = ["Answer", "Attester", "ReleaseClient", "Renewal", "boot_seconds", "open_attester"]

_GPU: Final = ",nvidia"


@dataclass(frozen=True, slots=True)
class Attester:
    """What vouches for this machine: a primary collector, and secondary ones that it vouches for."""

    primary: Collector
    secondary: Sequence[Collector] = ()

    def collect(self, binding: Binding) -> list[Evidence]:
        """All evidence for one request, the primary first.

        Raises:
            StrongroomError: a device is not there, or does not do it.
        """
        secondary = [one.collect(binding.for_secondary()) for one in self.secondary]
        return [self.primary.collect(binding.for_primary(self.primary.kind, secondary)), *secondary]


def open_attester(spec: str | None) -> Attester | None:
    """The attester that a profile names: ``tsm``, ``tpm``, ``tsm,nvidia`` …; None for None.

    Raises:
        UsageError: there is no such collector, or not here.
    """
    if spec is None:
        return None
    primary = open_collector(spec.removesuffix(_GPU))
    return Attester(primary, [open_collector("nvidia")] if spec.endswith(_GPU) else [])


@dataclass(frozen=True, slots=True)
class Renewal:
    """What became of a lease: ``lease`` is the new one, or None, and then ``code`` says why."""

    id: str
    lease: Lease | None
    code: str = ""


_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Answer(Generic[_Result]):
    """What the server signed.

    Attributes:
        time: the server's.
        asked_at: seconds of the client's clock just before it was asked.
        results: in the order of what was asked for.
    """

    time: datetime
    asked_at: float
    results: Sequence[_Result]


def boot_seconds() -> float:
    """Seconds since the machine started, those of suspension too; nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ReleaseClient:
    """Asks one key server for keys.

    Args:
        profile: the server, with the key that must have signed its answers.
        attester: collects evidence; None where an identity of the transport is enough.
        transport: in place of one with its defaults.
        clock: for :attr:`Answer.asked_at`.
    """

    def __init__(
        self,
        profile: Profile,
        attester: Attester | None = None,
        *,
        transport: Transport | None = None,
        clock: Callable[[], float] = boot_seconds,
    ) -> None:
        self._clock = clock
        self.profile = profile
        self._attester = attester
        self._transport = transport or Transport(profile)

    def release(self, wanted: Sequence[WantedKey]) -> list[Released]:
        """The keys, in the order of ``wanted``; all of them or none.

        Raises:
            ReleaseDenied: the server refuses one; its ``code`` says why.
            UntrustedAnswer: the answer is not from this server, or not to this request.
            ServerUnavailable: no answer.
            StrongroomError: no evidence could be collected, or the server answered with this error.
        """
        results = self.ask(wanted).results
        released = [one for one in results if isinstance(one, Released)]
        for one in results:
            if isinstance(one, Refused):
                for other in released:
                    other.dek.wipe()
                raise denied(one.code, one.wanted.key)
        return released

    def ask(self, wanted: Sequence[WantedKey]) -> Answer[Released | Refused]:
        """As :meth:`release`, with refusals among the results, and with the server's time."""
        return self._transport.retrying(lambda: self._exchange(wanted))

    def _exchange(self, wanted: Sequence[WantedKey]) -> Answer[Released | Refused]:
        challenge = self._challenge()
        with SecretBytes.random(MLKEM768X25519.secret_size) as secret:
            public = MLKEM768X25519.public_of(secret)
            bare = ReleaseRequest(challenge, MLKEM768X25519.alg, public, tuple(wanted))
            # The name that the profile says: evidence for another server is worthless to it.
            binding = bare.binding(self.profile.server_id)
            evidence = [] if self._attester is None else self._attester.collect(binding)
            request = {**bare.to_json(), "evidence": [one.to_json() for one in evidence]}
            asked_at = self._clock()
            answer = self._transport.once("POST", "/v1/release", request)
            moment, results = open_answer(answer, binding, secret, self.profile.signing_key)
        for one in results:
            if isinstance(one, Released) and one.lease.not_after <= moment:
                raise UntrustedAnswer("The key server gives a lease that is over already.")
        return Answer(moment, asked_at, results)

    def _challenge(self) -> bytes:
        try:
            challenge = Challenge.from_json(self._transport.once("POST", "/v1/challenge", {}))
        except UsageError as error:
            raise UntrustedAnswer(f"The key server gives no usable challenge: {error}") from None
        if challenge.server_id != self.profile.server_id:
            raise UntrustedAnswer(
                f"At {self.profile.address} is the key server {challenge.server_id}, not "
                f"{self.profile.server_id}.",
                hint="If the server was set up anew on purpose, fetch its profile from its owner again.",
            )
        return challenge.challenge

    def renew(self, leases: Sequence[str]) -> Answer[Renewal]:
        """Ask for more time; what became of each lease.

        Raises:
            UntrustedAnswer, ServerUnavailable, StrongroomError: as for :meth:`release`.
        """
        return self._transport.retrying(lambda: self._renew(leases))

    def _renew(self, leases: Sequence[str]) -> Answer[Renewal]:
        nonce = b64url(os.urandom(32))
        body = {"nonce": nonce, "leases": list(leases)}
        asked_at = self._clock()
        answer = self._transport.once("POST", "/v1/lease/renew", body)
        payload = verify_signed(answer, self.profile.signing_key)
        said = {name: payload.get(name) for name in ("v", "server_id", "nonce")}
        wrong = UntrustedAnswer("The key server answered another question than the one that was asked.")
        if said != {"v": 1, "server_id": self.profile.server_id, "nonce": nonce}:
            raise wrong
        results = payload.get("results")
        if not isinstance(results, list) or len(results) != len(leases):
            raise wrong
        try:
            moment = parse_time(payload.get("time"), "The server's time")
            found = [_renewal(one, id) for one, id in zip(results, leases, strict=True)]
        except (ValueError, TypeError, KeyError, UsageError):
            raise wrong from None
        return Answer(moment, asked_at, found)

    def end(self, leases: Sequence[str]) -> None:
        """Give leases back.

        Raises:
            ServerUnavailable, StrongroomError: they end by themselves, then.
        """
        self._transport.request("POST", "/v1/lease/end", {"leases": list(leases)})

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


def _renewal(result: dict[str, Any], id: str) -> Renewal:
    if result["id"] != id:
        raise ValueError
    if "refused" in result:
        return Renewal(id, None, str(result["refused"]))
    return Renewal(
        id,
        Lease(
            id,
            parse_time(result["not_after"], "The end of the lease"),
            parse_time(result["renew_after"], "The renewal of the lease"),
        ),
    )
