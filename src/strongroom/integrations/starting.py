"""Models that shall answer before a server says that it does."""

from __future__ import annotations

import time
from typing import Final

from strongroom.serving.engine import Engine
from strongroom.serving.states import VersionStatus
from strongroom.serving.status import Code, RequestError
from strongroom.web.logs import log

__all__ = ["told", "wait_until_ready"]

_FIRST_PAUSE: Final = 0.5
_LAST_PAUSE: Final = 10.0


def wait_until_ready(engine: Engine, patience: float | None) -> None:
    """Wait until every model answers; blocks.

    What a retry may help, a key server or cache that is away above all, is tried again; what is refused
    or wrong is raised at once.

    Args:
        engine: started.
        patience: seconds to wait for what may come; None waits for ever.

    Raises:
        RequestError: a model does not answer, and why.
    """
    end = None if patience is None else time.monotonic() + patience
    for name in engine.names():
        pause = _FIRST_PAUSE
        while True:
            try:
                engine.load(name)
                break
            except RequestError as error:
                failure = _reason(engine, name) or error
                left = None if end is None else end - time.monotonic()
                if failure.code is not Code.UNAVAILABLE or (left is not None and left <= 0):
                    raise failure from None
            time.sleep(pause if left is None else min(pause, left))
            pause = min(_LAST_PAUSE, 2 * pause)


def _reason(engine: Engine, model: str) -> RequestError | None:
    """What the status of the highest version says; a client is told no more than that it is not there."""
    for one in engine.status(model):
        if one.code:
            return RequestError(Code(one.code), one.message)
    return None


def told(model: str, status: VersionStatus) -> None:
    """Log a change of a version's state."""
    say = log.warning if status.code else log.info
    more = {"code": Code(status.code).name, "message": status.message} if status.code else {}
    say("model", model=model, version=status.version, state=status.state.name, **more)
