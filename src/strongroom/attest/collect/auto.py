"""The collector for the machine at hand: whatever TEE is there, and else its TPM."""

from __future__ import annotations

import os

from strongroom.attest.collect import gramine, nitro, tpm_device, tsm
from strongroom.attest.collect.base import Collector
from strongroom.errors import NotFound

__all__ = ["find_collector"]


def find_collector(root: str = "/") -> Collector:
    """The first that is there of Gramine, configfs-tsm, Nitro, TPM.

    A TEE that is there and does not work is an error: evidence of less would be refused later, with
    nobody to say why. GPUs alone prove nothing, and are not looked for.

    Args:
        root: directory in which ``/dev`` and ``/sys`` are.

    Raises:
        NotFound: there is none of them.
        UsageError: one is there, and this user may not use it, or it is not set up.
        MissingExtra: its packages are not installed.
    """
    if os.path.exists(place := _in(root, gramine.DEFAULT_PATH)):
        return gramine.GramineCollector(place)
    if os.path.exists(place := _in(root, tsm.DEFAULT_PATH)):
        try:
            return tsm.TsmCollector(place)
        except NotFound:
            pass  # The kernel knows the interface and has no driver behind it: no TEE.
    if os.path.exists(place := _in(root, nitro.DEFAULT_DEVICE)):
        return nitro.NitroCollector(place)
    name, _, device = tpm_device.DEFAULT_TCTI.partition(":")
    if os.path.exists(place := _in(root, device)):
        from strongroom.attest.collect.tpm import TpmCollector

        return TpmCollector(f"{name}:{place}")
    raise NotFound(
        "There is nothing on this machine that makes evidence.",
        hint=f"Looked for {gramine.DEFAULT_PATH}, {tsm.DEFAULT_PATH}, {nitro.DEFAULT_DEVICE} and {device}; "
        "for another TEE, or another place, say which.",
    )


def _in(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))
