"""Who may use which model, and how often."""

from __future__ import annotations

import functools
import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cryptography import x509

from strongroom.serving.call import Client
from strongroom.serving.config import ClientRule
from strongroom.serving.status import Code, RequestError

__all__ = ["Access", "client_of", "with_token"]

Rules = Callable[[str], Sequence[ClientRule]]


@functools.lru_cache(1024)
def _names(certificate: bytes) -> tuple[str, tuple[str, ...]]:
    parse = (
        x509.load_pem_x509_certificate
        if certificate.startswith(b"-----")
        else x509.load_der_x509_certificate
    )
    found = parse(certificate)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return found.subject.rfc4514_string(), ()
    return found.subject.rfc4514_string(), (
        *names.get_values_for_type(x509.DNSName),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
    )


def client_of(address: str, certificate: bytes | None) -> Client:
    """Who is at the other end of a connection.

    Args:
        address: of it.
        certificate: DER or PEM, as the handshake has verified it; None where there is none.
    """
    if certificate is None:
        return Client(address)
    try:
        subject, names = _names(certificate)
    except ValueError:  # what OpenSSL can read and this library cannot
        return Client(address)
    return Client(address, subject, names)


def with_token(client: Client, authorization: str) -> Client:
    """The client, with the bearer token of its header, if that is one."""
    if authorization[:7].lower() != "bearer ":
        return client
    return replace(client, token=authorization[7:].strip())


class _Rule:
    """A rule, and what its client has left of its quota: a second's worth, or one request."""

    def __init__(self, rule: ClientRule) -> None:
        self._rule = rule
        self._rate = rule.requests_per_second
        self._most = max(1.0, self._rate)
        self._left, self._then = self._most, time.monotonic()
        self._lock = threading.Lock()

    def fits(self, client: Client, digest: str) -> bool:
        rule = self._rule
        if rule.token_sha256 is not None:
            return bool(digest) and hmac.compare_digest(digest, rule.token_sha256.lower())
        if rule.subject is not None:
            return client.subject == rule.subject
        return rule.name in client.names

    def take(self) -> None:
        if not self._rate:
            return
        with self._lock:
            now = time.monotonic()
            self._left = min(self._most, self._left + (now - self._then) * self._rate)
            self._then = now
            if self._left < 1:
                raise RequestError(Code.RESOURCE_EXHAUSTED, "The quota of this client is used up.")
            self._left -= 1


class Access:
    """Rules for clients, kept up with the configuration.

    Args:
        rules: of a model by name; raises RequestError for one that is not there.
        admins: who may load and unload models and reconfigure; empty: nobody, None: everybody.
    """

    def __init__(self, rules: Rules, admins: Sequence[ClientRule] | None = ()) -> None:
        self._rules = rules
        self._admins = None if admins is None else [_Rule(one) for one in admins]
        self._known: Mapping[str, tuple[Sequence[ClientRule], list[_Rule]]] = {}

    def check(self, client: Client, model: str, *, counts: bool = True) -> None:
        """Let a client use a model, if it may.

        Args:
            counts: for its quota; not when it is looked at a second time.

        Raises:
            RequestError: UNAUTHENTICATED: it has not said who it is; PERMISSION_DENIED: another one
                might; RESOURCE_EXHAUSTED: not that often.
        """
        try:
            if not self._rules(model):
                return
            rules = self._of(model)
        except RequestError:
            return  # the protocol says that there is no such model
        _allow(client, rules, f"use the model {model}", counts)

    def _of(self, model: str) -> Sequence[_Rule]:
        wanted = self._rules(model)
        known = self._known.get(model)
        if known is None or known[0] is not wanted:
            known = (wanted, [_Rule(one) for one in wanted])
            self._known = {**self._known, model: known}
        return known[1]

    def sees(self, client: Client, model: str) -> bool:
        """It may use the model, and so hear of it; a quota does not count."""
        try:
            rules = self._of(model)
        except RequestError:
            return False
        return not rules or bool(_fitting(client, rules))

    def ruled(self, model: str) -> bool:
        """Not everybody may use it."""
        try:
            return bool(self._rules(model))
        except RequestError:
            return False

    def known(self, model: str) -> bool:
        """There is such a model."""
        try:
            self._rules(model)
        except RequestError:
            return False
        return True

    def check_admin(self, client: Client, *, counts: bool = True) -> None:
        """Let a client change what is served, if it may; as of :meth:`check`."""
        if self._admins is None:
            return
        if not self._admins:
            raise RequestError(
                Code.PERMISSION_DENIED, "This server is not administered by requests (--admin)."
            )
        _allow(client, self._admins, "change what is served", counts)


def _fitting(client: Client, rules: Sequence[_Rule]) -> list[_Rule]:
    token = client.token
    digest = "" if token is None else hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
    # All of them are looked at: how long it takes does not tell which one it was.
    return [one for one in rules if one.fits(client, digest)]


def _allow(client: Client, rules: Sequence[_Rule], what: str, counts: bool) -> None:
    if not rules:
        return
    fitting = _fitting(client, rules)
    if fitting:
        if counts:
            fitting[0].take()
    elif client.subject is None and client.token is None:
        raise RequestError(Code.UNAUTHENTICATED, f"To {what} takes a certificate or a token.")
    else:
        raise RequestError(Code.PERMISSION_DENIED, f"This client may not {what}.")
