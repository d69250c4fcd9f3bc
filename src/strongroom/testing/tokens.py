"""Issuers of tokens that do not exist: Google, NRAS, Kubernetes and others, with keys of their own."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from strongroom.attest.roots import Issuer
from strongroom.format.encoding import b64url
from strongroom.testing.authority import Authority

__all__ = ["TokenIssuer"]


@dataclass
class TokenIssuer:
    """One issuer, with an ES384 key.

    Args:
        issuer: the ``iss`` of its tokens.
        now: from when its certificates and tokens are valid.
        audience: of its tokens; empty for an issuer whose tokens have none.
        kid: of its key.
    """

    issuer: str
    now: datetime
    audience: str = "test-server"
    kid: str = "one"
    _root: Authority = field(init=False, repr=False)
    _signer: Authority = field(init=False, repr=False)

    def __post_init__(self) -> None:
        since, until = self.now - timedelta(days=1), self.now + timedelta(days=365)
        self._root = Authority.make("TEST token root", since, until)
        self._signer = Authority.make("TEST token signer", since, until, self._root, ca=False)

    @property
    def root(self) -> bytes:
        """PEM of the root of the ``x5c`` chain."""
        return self._root.pem

    @property
    def jwks(self) -> bytes:
        """The key set, JSON."""
        return json.dumps({"keys": [self.jwk()]}).encode()

    def jwk(self) -> dict[str, Any]:
        """The public key."""
        numbers = self._signer.key.public_key().public_numbers()
        return {
            "kty": "EC",
            "crv": "P-384",
            "use": "sig",
            "kid": self.kid,
            "x": b64url(numbers.x.to_bytes(48)),
            "y": b64url(numbers.y.to_bytes(48)),
        }

    def trusted(self, *, by_root: bool = False) -> Issuer:
        """The issuer as a verifier is configured with it: by key set, or by root."""
        if by_root:
            return Issuer(self.issuer, self.audience, root=self.root)
        return Issuer(self.issuer, self.audience, jwks=self.jwks)

    def token(
        self,
        claims: Mapping[str, Any] | None = None,
        header: Mapping[str, Any] | None = None,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
    ) -> bytes:
        """A signed token.

        Args:
            claims: besides iss, aud, iat, nbf and exp, or instead; None as a value leaves one out.
            header: the same, besides alg, typ and kid.
            key: P-384, to sign with instead of the issuer's.
        """
        moment = int(self.now.timestamp())
        usual: dict[str, Any] = {
            "iss": self.issuer,
            "aud": self.audience or None,
            "iat": moment,
            "nbf": moment,
            "exp": moment + 300,
        }
        head = {"alg": "ES384", "typ": "JWT", "kid": self.kid} | dict(header or {})
        body = usual | dict(claims or {})
        said = b".".join(
            b64url(json.dumps({k: v for k, v in part.items() if v is not None}).encode()).encode()
            for part in (head, body)
        )
        signer = self._signer if key is None else Authority(self._signer.certificate, key)
        return said + b"." + b64url(signer.sign(said)).encode()

    def x5c(self) -> list[str]:
        """The chain of the signing key, as it stands in a header."""
        return [
            base64.b64encode(one.certificate.public_bytes(Encoding.DER)).decode()
            for one in (self._signer, self._root)
        ]

    def detached(
        self,
        submodules: Mapping[str, Mapping[str, Any]],
        claims: Mapping[str, Any] | None = None,
    ) -> bytes:
        """The form of NRAS: an overall token, and one for each of ``submodules`` with its claims.

        Args:
            submodules: name → claims.
            claims: of the overall token.
        """
        tokens = {name: self.token(one) for name, one in submodules.items()}
        digests: dict[str, Sequence[Any]] = {
            name: ["DIGEST", ["SHA-256", hashlib.sha256(token).hexdigest()]]
            for name, token in tokens.items()
        }
        overall = self.token({"submods": digests} | dict(claims or {}))
        named = {name: token.decode() for name, token in tokens.items()}
        return json.dumps([["JWT", overall.decode()], named]).encode()

    def kubernetes(self, namespace: str, account: str, **claims: Any) -> bytes:
        """A projected service-account token.

        Args:
            namespace: of the account.
            account: its name.
            claims: instead of, or besides, the usual ones.
        """
        said = {
            "namespace": namespace,
            "serviceaccount": {"name": account, "uid": "6f9b2a52"},
            "pod": {"name": f"{account}-0", "uid": "0f1c9a77"},
            "node": {"name": "node-1", "uid": "77ab01cc"},
        }
        subject = f"system:serviceaccount:{namespace}:{account}"
        return self.token({"sub": subject, "kubernetes.io": said} | claims)
