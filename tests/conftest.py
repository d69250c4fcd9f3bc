"""For all tests."""

import signal
from contextlib import suppress

from hypothesis import HealthCheck, settings

from strongroom.crypto.apart import load_apart

# Tests of many packages share a process here. Whoever imports tpm2_pytss first must not leave the TPM's
# library to find its OpenSSL in TensorFlow, which comes later.
with suppress(OSError):
    load_apart("libtss2-esys.so.0")

# In the background of a shell that is no terminal's, SIGINT is ignored, and so it would be by all that is
# started here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is, and nothing of what is tested.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
