"""A key server with its port for clients of Gramine; machines that its policies know, and others."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from servers import BUNDLE, Server

from strongroom.attest.endorsements import Wanted
from strongroom.attest.sources.files import DirectorySource
from strongroom.testing.gramine import GramineClient
from strongroom.testing.intel import IntelPki

MR_ENCLAVE = b"\x11" * 32
MR_SIGNER = b"\x22" * 32
SGX = {"kind": "sgx", "mr_enclave": [MR_ENCLAVE.hex()]}
DEK = bytes(range(50, 82))
PARTS = {"mr_enclave": MR_ENCLAVE, "mr_signer": MR_SIGNER, "isv_prod_id": 7, "isv_svn": 3}


class GramineServer(Server):
    """``door`` is the port."""

    door: int = 0

    @property
    def ca(self) -> str:
        return (self.directory / "tls" / "ca.pem").read_text()

    def start(self, wait: bool = True) -> GramineServer:
        began = self.log.stat().st_size if self.log.exists() else 0
        super().start(wait)
        (self.door,) = (
            one["port"] for one in self.events(began) if one["event"] == "listening for Gramine"
        )
        return self

    def endorse(self, pki: IntelPki, **said) -> None:
        """Have the server know Intel's statements about machines of this model."""
        place = self.directory / "endorsements"
        place.mkdir(exist_ok=True)
        wanted = {"tee": "sgx", "fmspc": pki.fmspc.hex().upper(), "ca": "platform"}
        DirectorySource(place).store(Wanted("intel", wanted), pki.collateral("sgx", **said))

    def releases(self, after: int = 0) -> list[dict[str, object]]:
        """Records of releases and refusals behind one."""
        records = self.admin("GET", f"/v1/audit?after={after}&limit=1000")["records"]
        return [one for one in records if one["event"] == "release"]

    def head(self) -> int:
        records = self.admin("GET", "/v1/audit?limit=1000")["records"]
        return records[-1]["sequence"] if records else 0


def make(directory, pki: IntelPki, **limits) -> GramineServer:
    """A server that is not started; nothing is in it."""
    server = GramineServer.make(directory, pki=pki)
    server.configure("gramine", port=0)
    server.configure("attestation", endorsements=["files:endorsements"])
    server.configure("limits", requests_per_second=10000, burst=10000, **limits)
    server.endorse(pki)
    return server


def policy(version=1, id="gramine", keys=("models/net",), **members):
    return {
        "id": id,
        "version": version,
        "keys": list(keys),
        "any": [SGX],
        "test_roots": True,
        "gramine": [{"key": keys[0], "form": "wrap-key"}],
        **members,
    }


def fill(server: GramineServer) -> None:
    """A key, and a policy that provisions its wrap key."""
    server.add_key("models/net", DEK)
    server.admin("PUT", "/v1/policies", {"policy": policy()})


def another_model(server: GramineServer, pki: IntelPki, fmspc: str, **said) -> IntelPki:
    """A machine of another model, about which Intel says something else."""
    other = replace(pki, fmspc=bytes.fromhex(fmspc)).another(ppid=b"\x09" * 16, piid=b"\x08" * 16)
    server.endorse(other, **said)
    return other


def new_pki() -> IntelPki:
    return IntelPki.create(datetime.now(UTC).replace(microsecond=0))


def client(pki: IntelPki, **options) -> GramineClient:
    parts = {**PARTS, **options.pop("parts", {})}
    return GramineClient(pki, parts=parts, **options)


LONG_AGO = timedelta(days=60)

__all__ = [
    "BUNDLE",
    "DEK",
    "LONG_AGO",
    "MR_ENCLAVE",
    "PARTS",
    "SGX",
    "GramineServer",
    "another_model",
    "client",
    "fill",
    "make",
    "new_pki",
    "policy",
]
