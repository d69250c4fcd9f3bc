"""configfs-tsm: against a file system that reacts as the kernel's does, with real system calls."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from fake_tsm import FakeTsm

from strongroom.attest.collect import open_collector
from strongroom.attest.collect.auto import find_collector
from strongroom.attest.collect.tsm import TsmCollector
from strongroom.attest.limits import MAX_ENDORSEMENTS, MAX_EVIDENCE
from strongroom.attest.roots import production
from strongroom.attest.verify import Context, verify
from strongroom.errors import NotFound, Unavailable, UsageError
from strongroom.testing.intel import IntelPki

BOUND = bytes(range(64))


@contextmanager
def machine(tmp_path, provider="tdx_guest", quote=lambda data: b"quote of " + data, certificates=b""):
    place = tmp_path / "report"
    place.mkdir()
    with FakeTsm(place, provider, quote, certificates) as tsm:
        yield tsm
        assert list(tsm.root.children) == [], "a directory was left behind"


def test_a_quote_of_tdx(tmp_path):
    with machine(tmp_path, certificates=None) as tsm:
        evidence = open_collector(f"tsm:{tsm.place}").collect(BOUND)
    assert (evidence.kind, evidence.data, evidence.endorsements) == ("tdx", b"quote of " + BOUND, ())
    assert tsm.writes == [("inblob", BOUND)], "one write of 64 bytes"


def test_a_report_of_snp_brings_its_certificates(tmp_path):
    with machine(tmp_path, "sev_guest", certificates=b"table of certificates") as tsm:
        evidence = TsmCollector(str(tsm.place)).collect(BOUND)
    assert (evidence.kind, evidence.endorsements) == ("snp", (b"table of certificates",))


def test_a_collected_quote_verifies(tmp_path):
    """Through the whole way, with a quote that is real but for its root."""
    pki = IntelPki.create(datetime.now(UTC))
    with machine(tmp_path, quote=lambda data: pki.tdx_quote(data)) as tsm:
        evidence = TsmCollector(str(tsm.place)).collect(b"short")
    collateral = pki.collateral("tdx")
    evidence = type(evidence)(evidence.kind, evidence.data, (collateral,))
    claims = verify(evidence, Context(datetime.now(UTC), pki.roots(production())))
    assert claims.bound == b"short" + bytes(59), "zeros follow"


def test_the_largest_quote_is_read(tmp_path):
    """In several reads."""
    with machine(tmp_path, quote=lambda data: bytes(MAX_EVIDENCE)) as tsm:
        assert len(TsmCollector(str(tsm.place)).collect(BOUND).data) == MAX_EVIDENCE


@pytest.mark.parametrize(
    ("quote", "certificates"),
    [(bytes(MAX_EVIDENCE + 1), b""), (b"quote", bytes(MAX_ENDORSEMENTS + 1)), (b"", b"")],
)
def test_too_much_or_nothing_is_an_error(tmp_path, quote, certificates):
    with (
        machine(tmp_path, quote=lambda data: quote, certificates=certificates) as tsm,
        pytest.raises(Unavailable),
    ):
        TsmCollector(str(tsm.place)).collect(BOUND)


@pytest.mark.parametrize("size", [0, 65])
def test_nothing_or_too_much_cannot_be_bound(tmp_path, size):
    with machine(tmp_path) as tsm, pytest.raises(UsageError, match="bound to 1 to 64"):
        TsmCollector(str(tsm.place)).collect(bytes(size))


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, errno.EIO])
def test_a_busy_firmware_is_asked_again(tmp_path, code):
    pauses, failures = [], [code, code]

    def quote(data):
        if failures:
            raise OSError(failures.pop(), "")
        return b"quote of " + data

    with machine(tmp_path, quote=quote) as tsm:
        evidence = TsmCollector(str(tsm.place), pause=pauses.append).collect(BOUND)
    assert evidence.data == b"quote of " + BOUND
    assert pauses == [0.2, 0.4]
    assert len(set(tsm.made)) == 4, "one to learn the kind, then one for each attempt"


def test_a_firmware_that_stays_busy_is_an_error(tmp_path):
    def quote(data):
        raise OSError(errno.EBUSY, "")

    with (
        machine(tmp_path, quote=quote) as tsm,
        pytest.raises(Unavailable, match="device or resource busy"),
    ):
        TsmCollector(str(tsm.place), pause=lambda seconds: None).collect(BOUND)
    assert len(tsm.made) == 6


def test_another_error_is_not_tried_again(tmp_path):
    def quote(data):
        raise OSError(errno.ENOTTY, "")

    with machine(tmp_path, quote=quote) as tsm, pytest.raises(Unavailable, match="made no report"):
        TsmCollector(str(tsm.place), pause=pytest.fail).collect(BOUND)
    assert len(tsm.made) == 2


def test_somebody_who_writes_into_our_directory_is_noticed(tmp_path):
    """The quote would carry his report data: the generation tells."""
    with machine(tmp_path) as tsm:
        attempts = []

        def interfere(entry):
            attempts.append(entry.name)
            if len(attempts) < 3:
                tsm.write(entry, b"\xee" * 64)

        tsm.interfere = interfere
        evidence = TsmCollector(str(tsm.place), pause=lambda seconds: None).collect(BOUND)
        assert evidence.data == b"quote of " + BOUND
        assert len(attempts) == 3
        tsm.interfere = lambda entry: tsm.write(entry, b"\xee" * 64)
        with pytest.raises(Unavailable, match="in 5 attempts"):
            TsmCollector(str(tsm.place), pause=lambda seconds: None).collect(BOUND)


def test_a_generation_that_is_no_number_is_an_error(tmp_path):
    with machine(tmp_path) as tsm:
        collector = TsmCollector(str(tsm.place))
        made = tsm.mkdir

        def mkdir(node):
            made(node)
            node.children["generation"].content = lambda: b"soon\n"

        tsm.mkdir = mkdir
        with pytest.raises(Unavailable, match="no number"):
            collector.collect(BOUND)


def test_certificates_that_the_kernel_cannot_read_are_left_out(tmp_path):
    """As for TDX, where some kernels have the file and nothing to put into it."""
    with machine(tmp_path) as tsm:
        made = tsm.mkdir

        def mkdir(node):
            made(node)
            node.children["auxblob"].content = lambda: (_ for _ in ()).throw(OSError(errno.ENXIO, ""))

        tsm.mkdir = mkdir
        assert TsmCollector(str(tsm.place)).collect(BOUND).endorsements == ()


def test_a_driver_that_is_not_known(tmp_path):
    with machine(tmp_path, "arm_cca_guest") as tsm, pytest.raises(UsageError, match="arm_cca_guest"):
        TsmCollector(str(tsm.place))


def test_a_kernel_without_a_driver(tmp_path):
    with machine(tmp_path, None) as tsm:
        with pytest.raises(NotFound, match="no driver") as caught:
            TsmCollector(str(tsm.place))
        assert "modprobe" in (caught.value.hint or "")


def test_a_kernel_without_configfs(tmp_path):
    with pytest.raises(NotFound, match="no reports of the kernel") as caught:
        TsmCollector(str(tmp_path / "tsm" / "report"))
    assert "mount -t configfs" in (caught.value.hint or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_user_who_may_not():
    code = (
        "import os, sys\n"
        "from strongroom.attest.collect.tsm import TsmCollector\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: TsmCollector(sys.argv[1])\n"
        "except Exception as error: print(type(error).__name__, error, error.hint)\n"
    )
    # pytest's own directories are root's alone.
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o755)
        done = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True)
    assert "UsageError" in done.stdout, done.stderr
    assert "permission denied" in done.stdout
    assert "Only root" in done.stdout


def test_the_stand_in_reacts_as_the_kernel_does(tmp_path):
    """Or else the tests above would show nothing."""
    with machine(tmp_path) as tsm:
        entry = tsm.place / "one"
        entry.mkdir()
        with pytest.raises(OSError, match="Invalid argument"):
            (entry / "outblob").read_bytes()
        (entry / "inblob").write_bytes(b"short")
        with pytest.raises(OSError, match="Invalid argument"):
            (entry / "outblob").read_bytes()
        with pytest.raises(PermissionError):
            (entry / "inblob").unlink()
        assert (entry / "generation").read_text() == "1\n"
        with pytest.raises(FileNotFoundError):
            (entry / "privlevel").read_bytes()
        entry.rmdir()
        assert not entry.exists()


def test_auto_takes_the_kernel_where_it_has_a_driver(tmp_path):
    place = tmp_path / "sys/kernel/config/tsm/report"
    place.mkdir(parents=True)
    with FakeTsm(place, "sev_guest", lambda data: data):
        assert find_collector(str(tmp_path)).kind == "snp"


def test_auto_goes_on_where_the_kernel_has_no_driver(tmp_path):
    place = tmp_path / "sys/kernel/config/tsm/report"
    place.mkdir(parents=True)
    with (
        FakeTsm(place, None, lambda data: data),
        pytest.raises(NotFound, match="nothing on this machine"),
    ):
        find_collector(str(tmp_path))


def test_auto_does_not_go_on_where_a_tee_does_not_work(tmp_path):
    place = tmp_path / "sys/kernel/config/tsm/report"
    place.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nsm").touch()
    with (
        FakeTsm(place, "unknown", lambda data: data),
        pytest.raises(UsageError, match="not known here"),
    ):
        find_collector(str(tmp_path))
