"""Who asks for a release, as the connection says it: a client certificate, a token, or nobody.

Neither proves what machine it is; a policy has to name such an identity to let it in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from strongroom.attest import identities as attested
from strongroom.attest.endorsements import EndorsementSource
from strongroom.attest.evidence import Claims
from strongroom.attest.roots import Issuer
from strongroom.attest.sources import ChainSource, endorsement_source
from strongroom.errors import EvidenceError
from strongroom.keyserver.settings import Config
from strongroom.keyserver.tls_contexts import ClientCertificate
from strongroom.keyserver.trust import key_set_specs

__all__ = ["Identities"]

_VERIFIERS: Final = {"oidc": attested.oidc, "kubernetes": attested.kubernetes}


class Identities:
    """Verifies what connections bring along.

    Args:
        issuers: of tokens, by kind.
        audience: of tokens: the id of the server.
        endorsements: where their key sets come from.
    """

    def __init__(
        self,
        issuers: Mapping[str, Sequence[Issuer]],
        audience: str,
        endorsements: EndorsementSource | None = None,
    ) -> None:
        self._issuers = issuers
        self._audience = audience
        self._endorsements = endorsements

    @classmethod
    def from_config(cls, config: Config, endorsements: EndorsementSource | None) -> Identities:
        """As the configuration says.

        Args:
            config: of the server.
            endorsements: where key sets come from that are in no file.

        Raises:
            NotFound, UsageError: a file cannot be read.
        """
        issuers: dict[str, list[Issuer]] = {}
        for one in config.auth.issuers:
            issuers.setdefault(one.kind, []).append(
                Issuer(one.issuer, config.server_id, algorithms=tuple(one.algorithms))
            )
        files = endorsement_source(key_set_specs(config.auth.issuers))
        sources = [one for one in (files, endorsements) if one is not None]
        return cls(issuers, config.server_id, ChainSource(sources) if sources else None)

    def of(
        self, certificate: ClientCertificate | None, token: str | None, now: datetime
    ) -> list[Claims]:
        """The identities of one request.

        A certificate that says nothing to us is passed over, since TLS asks for one whatever it is
        for; a token was given for this, and must be good.

        Args:
            certificate: as TLS has verified it; None where there is none.
            token: as it stands after ``Bearer``; None where there is none.
            now: with a time zone.

        Raises:
            EvidenceError: the token is of nobody whom the configuration names, or is not good.
            Unavailable: its issuer's keys could not be fetched.
        """
        found = []
        if certificate is not None:
            found += self._of_certificate(certificate, now)
        if token is not None:
            found.append(self._of_token(token, now))
        return found

    def _of_certificate(self, certificate: ClientCertificate, now: datetime) -> list[Claims]:
        # Verified again: the connection may be older than the end of a certificate, and TLS takes more.
        try:
            return [
                attested.mtls(
                    certificate.leaf,
                    [certificate.root],
                    now,
                    intermediates=certificate.intermediates,
                )
            ]
        except EvidenceError:
            return []

    def _of_token(self, token: str, now: datetime) -> Claims:
        refusal: EvidenceError | None = None
        for kind, issuers in self._issuers.items():
            try:
                return _VERIFIERS[kind](
                    token.encode(), self._audience, issuers, now, self._endorsements
                )
            except EvidenceError as error:
                refusal = error
        raise refusal or EvidenceError("This server takes no tokens for releases.")
