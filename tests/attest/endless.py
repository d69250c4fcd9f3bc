"""What the library does not make: lists without an end, keys under another algorithm. Signed by ECDSA with SHA-256."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

SEQUENCE, BIT_STRING, UTC_TIME = 0x30, 0x03, 0x17


def members(data: bytes) -> list[bytes]:
    """The values in a DER sequence, each with its head."""
    found, at = [], 0
    while at < len(data):
        size, head = data[at + 1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[at + 2 : at + head])
        found.append(data[at : at + head + size])
        at += head + size
    return found


def content(value: bytes) -> bytes:
    return value[2 + (value[1] & 0x7F if value[1] & 0x80 else 0) :]


def der(tag: int, *values: bytes) -> bytes:
    inside = b"".join(values)
    size = len(inside)
    if size < 0x80:
        return bytes([tag, size]) + inside
    count = 1 if size < 0x100 else 2
    return bytes([tag, 0x80 | count]) + size.to_bytes(count, "big") + inside


def resigned(signed: bytes, algorithm: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    signature = key.sign(signed, ec.ECDSA(hashes.SHA256()))
    return der(SEQUENCE, signed, algorithm, der(BIT_STRING, b"\0", signature))


def with_oaep_key(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate of an RSA key, DER, that says it is one for RSAES-OAEP alone."""
    signed, algorithm, _ = members(content(certificate))
    rsa, oaep = (bytes.fromhex("06092a864886f70d0101") + last for last in (b"\x01", b"\x07"))
    assert signed.count(rsa) == 1
    return resigned(signed.replace(rsa, oaep), algorithm, key)


def endless(crl: x509.CertificateRevocationList, key: ec.EllipticCurvePrivateKey) -> bytes:
    """``crl`` without its nextUpdate; DER."""
    signed, algorithm, _ = members(content(crl.public_bytes(Encoding.DER)))
    parts = members(content(signed))
    times = [at for at, one in enumerate(parts) if one[0] == UTC_TIME]
    assert len(times) == 2
    del parts[times[1]]
    return resigned(der(SEQUENCE, *parts), algorithm, key)
