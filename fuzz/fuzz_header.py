"""Invariant: any bytes parse to a header that is written and parsed again to the same, or raise StrongroomError."""

import atheris

with atheris.instrument_imports(include=["strongroom", "json"]):
    import seeds

    from strongroom.errors import StrongroomError
    from strongroom.format.header import Header, HeaderArea


def target(data: bytes) -> None:
    try:
        header = Header.parse(data)
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 5000
        return
    assert Header.parse(header.encode()) == header
    assert len(header.bundle) == 16
    assert not header.path.startswith("/")
    assert ".." not in header.path.split("/")
    try:
        area = HeaderArea.build(header, lambda signed: bytes(32))
    except StrongroomError:
        assert len(header.encode()) > (1 << 20) - 4096
        return
    assert HeaderArea.parse(area).header == header


if __name__ == "__main__":
    seeds.fuzz(target, seeds.headers())
