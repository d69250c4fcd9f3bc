"""Controlled-access models, written from the description of the format alone."""

import base64
import datetime
import json
from collections.abc import Mapping

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY = bytes(range(32))
SALT = bytes(range(8))
GUID = "50934a64-5d1b-4655-bcb4-80080fcb8858"


def print_json(value, depth: int = 0) -> str:
    """As ``cJSON_Print`` does, for objects, lists and strings."""
    if isinstance(value, dict):
        tabs = "\t" * (depth + 1)
        members = (
            f"{tabs}{json.dumps(name)}:\t{print_json(member, depth + 1)}"
            for name, member in value.items()
        )
        return "{\n" + ",\n".join(members) + "\n" + "\t" * depth + "}"
    if isinstance(value, list):
        return "[" + ", ".join(print_json(member, depth + 1) for member in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def blob(plaintext: bytes, salt: bytes = SALT, secret: bytes = KEY.hex().encode() + b"\n") -> str:
    derived = HKDF(hashes.SHA384(), 80, salt, b"label").derive(secret)
    cipher = Cipher(algorithms.AES(derived[:32]), modes.CTR(derived[32:48])).encryptor()
    return base64.b64encode(b"Salted__" + salt + cipher.update(plaintext)).decode()


def signer() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def certificate(key) -> bytes:
    """A certificate in PEM, of any kind of key, that has run out long ago."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "model maker")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    builder = (
        x509.CertificateBuilder(name, name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=540))
    )
    return builder.sign(key, hashes.SHA512()).public_bytes(serialization.Encoding.PEM)


def document(contents: Mapping[str, bytes], **members) -> dict:
    """The members before the signature."""
    return {
        "name": "Face Detection",
        "description": 'a "model"',
        "version": "0002",
        "model_guid": GUID,
        "isv_certificate": "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n",
        "files": [
            {f"file_name_{number % 100}": name, f"file_body_{number % 100}": blob(plaintext)}
            for number, (name, plaintext) in enumerate(contents.items())
        ],
        **members,
    }


def signed(members: dict, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The text of the file."""
    text = print_json(members).encode()
    signature = base64.encodebytes(key.sign(text, ec.ECDSA(hashes.SHA512()))).decode()
    return print_json({**members, "signature": signature}).encode()


def licence(private, peer, certificate: bytes, key: bytes = KEY, **members) -> bytes:
    """A licence that wraps the key of a model for two keys: of them one private, the other public."""
    wrapping = base64.b64encode(private.exchange(ec.ECDH(), peer)) + b"\n"
    whole = {
        "creation_date": "Sat Nov 21 09:00:00 2026",
        "model_hash": "",
        "license_guid": "",
        "model_guid": GUID,
        "encryption_key": blob(key.hex().encode() + b"\n", secret=wrapping),
        "isv_certificate": certificate.decode(),
        "signature": "",
        **members,
    }
    return print_json(whole).encode()


def private_pem(key, passphrase: bytes | None = None) -> bytes:
    encryption = (
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption()
    )
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
