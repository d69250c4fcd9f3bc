"""What a GPU measured, held against NVIDIA's reference manifests for its driver and its VBIOS."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import product
from typing import Any, Final

from strongroom.attest.endorsements import Wanted
from strongroom.attest.nvidia_ocsp import check_revocation
from strongroom.attest.nvidia_report import ENABLED, Opaque, Report
from strongroom.attest.nvidia_rim import Rim, parse_rim, verify_rim, version_of
from strongroom.attest.verify import Context
from strongroom.errors import MalformedEvidence, MissingEndorsement, NotAuthentic

__all__ = ["Manifests", "References", "compare", "differing", "driver_rim_id", "vbios_rim_id"]

_NVDEC0: Final = 35
"""Index of the video decoder's measurement: of no meaning where the decoder is off."""

_MAX_ALTERNATIVES: Final = 4
"""Manifests for one version: for boards or chips that differ."""

_SWITCH_BOARD: Final = "5612_0002_890"
"""A switch does not say its board; there is one."""


@dataclass(frozen=True, slots=True)
class References:
    """How the measurements of one device compare.

    Attributes:
        verdict: "match", "mismatch" or "no-reference".
        differing: indexes at which they differ, as the manifests count them, from 0 on.
        ids: the names of the manifests that were used.
        not_after: until when those and their revocation answers hold; None without any.
    """

    verdict: str
    differing: Sequence[int] = ()
    ids: Sequence[str] = ()
    not_after: datetime | None = None


def driver_rim_id(report: Report, model: str) -> str | None:
    """The name of the manifest for the driver; a switch has none.

    Args:
        report: says the version, and the chip from Blackwell on.
        model: of the device, from its certificate.
    """
    version = report.text(Opaque.DRIVER_VERSION)
    if model.startswith("LS"):
        return None
    if model.startswith("GH"):
        return f"NV_GPU_DRIVER_GH100_{version}"
    return f"NV_GPU_CC_DRIVER_{report.text(Opaque.CHIP_INFO)}_{version}"


def vbios_rim_id(report: Report, model: str) -> str:
    """The name of the manifest for the VBIOS."""
    version = report.vbios.replace(".", "")
    if model.startswith("LS"):
        return f"NV_SWITCH_BIOS_{_SWITCH_BOARD}_{version}"
    board = (Opaque.PROJECT, Opaque.PROJECT_SKU, Opaque.CHIP_SKU)
    return "_".join(["NV_GPU_VBIOS", *(report.text(kind).upper() for kind in board), version])


def differing(report: Report, manifests: Sequence[Rim]) -> list[int]:
    """Indexes at which the report has none of the values that the manifests allow.

    Raises:
        NotAuthentic: two manifests speak of the same index.
    """
    found = []
    seen: set[int] = set()
    for manifest in manifests:
        if seen & set(manifest.measurements):
            raise NotAuthentic("Two reference manifests of a GPU speak of the same measurement.")
        seen |= set(manifest.measurements)
        for index, allowed in manifest.measurements.items():
            if index == _NVDEC0 and report.opaque.get(Opaque.NVDEC0_STATUS, ENABLED) != ENABLED:
                continue
            # Manifests count from 0, blocks from 1.
            if report.measurements.get(index + 1) not in allowed:
                found.append(index)
    return sorted(found)


class Manifests:
    """The manifests at hand for one piece of evidence, each verified once, when it is needed.

    Args:
        endorsements: of the evidence; those that are manifests for another version are left alone.
        context: root of the manifests, the time, and the source for what the evidence did not bring.

    Raises:
        MalformedEvidence: something among the endorsements looks like a manifest and is none.
    """

    def __init__(self, endorsements: Sequence[bytes], context: Context) -> None:
        self._context = context
        self._brought: dict[str, list[Any]] = {}
        for data in endorsements:
            if data.lstrip()[:1] == b"<":
                root = parse_rim(data)
                self._brought.setdefault(version_of(root), []).append(root)
        self._known: dict[str, list[tuple[Rim, datetime]]] = {}

    def named(self, name: str, version: str, chip: str) -> list[tuple[Rim, datetime]]:
        """The manifests for one version of a driver or VBIOS, and until when each holds; perhaps none.

        Raises:
            NotAuthentic: one is not authentic, not valid now, revoked, or for another version.
            MalformedEvidence: there are too many.
            Unavailable: the source does not answer.
        """
        if name not in self._known:
            self._known[name] = [self._checked(root, version) for root in self._roots(name, version)]
        found = self._known[name]
        # A driver of one version is measured to other values on another chip.
        return [one for one in found if one[0].product.replace("_", "") == chip] or found

    def _roots(self, name: str, version: str) -> list[Any]:
        brought = self._brought.get(version, []) if version else []
        if len(brought) > _MAX_ALTERNATIVES:
            raise MalformedEvidence("There are too many reference manifests for one version.")
        source = self._context.endorsements
        if brought or source is None or not version:
            return brought
        try:
            return [parse_rim(source.fetch(Wanted("nvidia-rim", {"id": name})))]
        except MissingEndorsement:
            return []

    def _checked(self, root: Any, version: str) -> tuple[Rim, datetime]:
        context = self._context
        manifest = verify_rim(root, context.roots.nvidia_rim, context.now)
        if manifest.version != version:
            raise NotAuthentic("The source's reference manifest is for another version.")
        answers = check_revocation(manifest.chain, context.endorsements, context.now)
        return manifest, min([manifest.not_after, *answers])


def compare(report: Report, model: str, manifests: Manifests) -> References:
    """Compare with the manifests for the versions that the report names.

    Args:
        report: authentic.
        model: of the device, from its certificate.
        manifests: at hand.

    Raises:
        NotAuthentic: as :meth:`Manifests.named`, or two manifests speak of the same index.
        MalformedEvidence: as :meth:`Manifests.named`.
        Unavailable: the source does not answer.
    """
    wanted = {vbios_rim_id(report, model): report.vbios}
    driver = driver_rim_id(report, model)
    if driver is not None:
        wanted[driver] = report.text(Opaque.DRIVER_VERSION).upper()
    chip = model.split(" ")[0].replace("_", "")
    found = {name: manifests.named(name, version, chip) for name, version in wanted.items()}
    ids = [name for name in found if found[name]]
    if not ids:
        return References("no-reference")
    # All are NVIDIA's: where several fit a version, for other boards, one of them must agree.
    choices = product(*(found[name] for name in ids))
    best = min(choices, key=lambda chosen: len(differing(report, [one for one, _ in chosen])))
    differences = differing(report, [one for one, _ in best])
    complete = "match" if len(ids) == len(wanted) else "no-reference"
    verdict = "mismatch" if differences else complete
    return References(verdict, differences, ids, min(until for _, until in best))
