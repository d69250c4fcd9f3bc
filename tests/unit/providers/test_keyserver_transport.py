"""What a client does with failures: when it asks again, and what it tells."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strongroom import errors
from strongroom.errors import ReleaseDenied, ServerUnavailable, StrongroomError
from strongroom.providers.keyserver.backoff import MAX_RETRY_AFTER, delay, retry_after_seconds
from strongroom.providers.keyserver.denial import CODES, denied
from strongroom.providers.keyserver.problems import error_of
from strongroom.providers.keyserver.profile import Profile
from strongroom.providers.keyserver.transport import Again, Transport


class TestDelays:
    @given(st.integers(0, 10**6), st.floats(0, 1, exclude_max=True), st.floats(0, MAX_RETRY_AFTER))
    def test_bounds(self, attempt, chance, after):
        assert after <= delay(attempt, chance, after) <= after + 8

    def test_it_doubles(self):
        assert [delay(attempt, 1.0) for attempt in range(7)] == [0.25, 0.5, 1, 2, 4, 8, 8]

    def test_full_jitter(self):
        assert delay(5, 0.0) == 0
        assert delay(5, 0.5) == 4

    @pytest.mark.parametrize(
        ("header", "seconds"),
        [
            ("0", 0),
            ("7", 7),
            ("3600", 60),
            ("9" * 9, 60),
            ("9" * 400, 0),
            (None, 0),
            ("", 0),
            ("-1", 0),
            ("1.5", 0),
            ("²", 0),
            ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
        ],
    )
    def test_retry_after(self, header, seconds):
        assert retry_after_seconds(header) == seconds


class TestErrors:
    def body(self, code, message="Said.", hint="Do."):
        return {"error": {"code": code, "message": message, "hint": hint}}

    @pytest.mark.parametrize(
        ("status", "code", "kind"),
        [
            (404, "not-found", errors.NotFound),
            (409, "already-exists", errors.AlreadyExists),
            (400, "usage-error", errors.UsageError),
            (403, "not-authorised", errors.NotAuthorised),
            (401, "not-authenticated", errors.NotAuthorised),
            (400, "invalid-policy", errors.EvidenceError),
            (400, "malformed-evidence", errors.MalformedEvidence),
            (413, "limit-exceeded", errors.LimitExceeded),
            (503, "unavailable", ServerUnavailable),
            (500, "internal", ServerUnavailable),
            (429, "too-many", ServerUnavailable),
            (418, "teapot", errors.UsageError),
            (302, "elsewhere", ServerUnavailable),
        ],
    )
    def test_classes(self, status, code, kind):
        error = error_of(status, self.body(code))
        assert type(error) is kind
        assert (error.message, error.hint) == ("Said.", "Do.")

    @pytest.mark.parametrize("code", sorted(CODES))
    def test_refusals(self, code):
        error = error_of(403, self.body(code))
        assert isinstance(error, ReleaseDenied)
        assert error.code == code
        assert error.hint
        # With another status a word such as "policy" is none.
        assert not isinstance(error_of(400, self.body(code)), ReleaseDenied)

    @pytest.mark.parametrize(
        "body", [None, {}, [], "x", {"error": None}, {"error": {"code": []}}, {"error": {"message": 1}}]
    )
    @pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 413, 429, 500, 503])
    def test_bodies_that_say_nothing(self, status, body):
        assert isinstance(error_of(status, body), StrongroomError)

    def test_messages_steer_no_terminal_and_have_an_end(self):
        error = error_of(400, self.body("usage-error", "\x1b[2J" + "x" * 10_000))
        assert "\x1b" not in str(error)
        assert len(str(error)) < 1100

    def test_denied(self):
        assert "the key m@3" in str(denied("policy", "m@3"))
        assert denied("a code of tomorrow").code == "a code of tomorrow"


@pytest.fixture
def profile(tmp_path):
    (tmp_path / "token").write_text("srt_secret\n")
    (tmp_path / "token").chmod(0o600)
    return Profile("https://localhost:1", "id", bytes(32), "x", b"", token_file=str(tmp_path / "token"))


class Scripted(Transport):
    """Answers of a script in place of the network."""

    def __init__(self, profile, *script):
        self.slept, self.script, self.sent = [], list(script), []
        super().__init__(profile, sleep=self.slept.append, chance=lambda: 1.0)

    def _exchange(self, method, path, data, headers):
        self.sent.append((method, path, data, headers))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


BUSY = Again(ServerUnavailable("busy"))
LOST = Again(ServerUnavailable("lost"), sent=True)


class TestAgain:
    def test_until_it_answers(self, profile):
        transport = Scripted(profile, BUSY, BUSY, {"a": 1})
        assert transport.request("POST", "/v1/keys", {}) == {"a": 1}
        assert transport.slept == [0.25, 0.5]

    def test_not_for_ever(self, profile):
        transport = Scripted(profile, *[BUSY] * 9)
        with pytest.raises(ServerUnavailable, match="busy"):
            transport.request("GET", "/v1/keys")
        assert transport.slept == [0.25, 0.5, 1, 2]

    def test_as_long_as_the_server_wants(self, profile):
        transport = Scripted(profile, Again(ServerUnavailable("busy"), retry_after=7), {})
        transport.request("GET", "/v1/keys")
        assert transport.slept == [7.25]

    @pytest.mark.parametrize(
        "error", [errors.NotAuthorised("no"), errors.UsageError("no"), denied("policy")]
    )
    def test_a_refusal_is_final(self, profile, error):
        transport = Scripted(profile, error, {})
        with pytest.raises(type(error)):
            transport.request("GET", "/v1/keys")
        assert transport.slept == []

    @pytest.mark.parametrize(
        ("method", "path", "again"),
        [
            ("GET", "/v1/keys?name=m", True),
            ("POST", "/v1/challenge", True),
            ("POST", "/v1/lease/renew", True),
            ("POST", "/v1/lease/end", True),
            ("POST", "/v1/release", False),
            ("POST", "/v1/keys", False),
            ("PUT", "/v1/policies", False),
            ("POST", "/v1/tokens", False),
            ("DELETE", "/v1/tokens/1", False),
        ],
    )
    def test_what_may_have_been_done_is_not_done_twice(self, profile, method, path, again):
        transport = Scripted(profile, LOST, {})
        if again:
            assert transport.request(method, path) == {}
        else:
            with pytest.raises(ServerUnavailable, match="lost"):
                transport.request(method, path)
            assert len(transport.sent) == 1


class TestTokens:
    def sent(self, profile, path, **more):
        transport = Scripted(profile, {})
        transport.request("POST", path, {}, **more)
        return transport.sent[0][3].get("Authorization")

    def test_an_administrators_is_not_shown_where_machines_ask(self, profile):
        assert self.sent(profile, "/v1/keys") == "Bearer srt_secret"
        assert self.sent(profile, "/v1/audit?after=1") == "Bearer srt_secret"
        for path in ("/v1/challenge", "/v1/release", "/v1/lease/renew", "/v1/lease/end"):
            assert self.sent(profile, path) is None
        assert self.sent(profile, "/v1/keys", token="srt_other") == "Bearer srt_other"

    def test_an_identity_is_shown_for_a_release_alone(self, profile, tmp_path):
        (tmp_path / "token").write_text("eyJ.e30.x\n")
        (tmp_path / "token").chmod(0o644)  # as Kubernetes mounts them
        assert self.sent(profile, "/v1/release") == "Bearer eyJ.e30.x"
        assert self.sent(profile, "/v1/challenge") is None
        assert self.sent(profile, "/v1/lease/renew") is None

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
    def test_one_that_others_can_read(self, profile, tmp_path, mode):
        (tmp_path / "token").chmod(mode)
        with pytest.raises(errors.NotAuthorised, match="read by others") as caught:
            self.sent(profile, "/v1/keys")
        assert "srt_" not in str(caught.value)

    @pytest.mark.parametrize(
        "content", [b"", b"\n", b"srt_a\nHost: x", b"srt_\xff", b"srt_a\x00", b"x" * 20_000]
    )
    def test_files_that_hold_none(self, profile, tmp_path, content):
        (tmp_path / "token").write_bytes(content)
        with pytest.raises(errors.InvalidKey, match="holds no token"):
            self.sent(profile, "/v1/keys")


def test_certificates_that_are_none(profile, tmp_path):
    from dataclasses import replace

    (tmp_path / "c.pem").write_text("x")
    for changes, kind in (
        ({"ca": "no PEM"}, errors.UsageError),
        ({"ca": ""}, errors.UsageError),
        ({"client_certificate": str(tmp_path / "c.pem")}, errors.InvalidKey),
        ({"client_certificate": str(tmp_path / "absent")}, errors.NotFound),
    ):
        with pytest.raises(kind):
            Transport(replace(profile, **changes))


def test_no_server(profile):
    with pytest.raises(ServerUnavailable, match="refused"):
        Transport(profile, attempts=1).request("GET", "/v1/server")
