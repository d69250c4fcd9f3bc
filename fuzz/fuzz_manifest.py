"""Invariant: any bytes parse to a manifest that is written and parsed again to the same and whose files cannot meet, or raise StrongroomError."""

import itertools

import atheris

with atheris.instrument_imports(include=["strongroom", "json"]):
    import seeds

    from strongroom.errors import StrongroomError
    from strongroom.format.manifest import Manifest


def target(data: bytes) -> None:
    try:
        manifest = Manifest.parse(data)
    except StrongroomError as error:
        message = str(error)
        assert message.isprintable()
        assert len(message) < 5000
        return
    assert Manifest.parse(manifest.encode()) == manifest
    assert Manifest.of(manifest.files[::-1]) == manifest
    places = sorted([entry.stored_as for entry in manifest.files] + ["MANIFEST.sealed"])
    assert len(set(places)) == len(places)
    for one, other in itertools.pairwise(places):
        assert not other.startswith(one + "/")
    for entry in manifest.files:
        assert (entry.salt is None) != (entry.sha256 is None)
        assert entry.path != "MANIFEST"
        assert not entry.path.startswith("/")
        assert ".." not in entry.path.split("/")


if __name__ == "__main__":
    seeds.fuzz(target, seeds.manifests())
