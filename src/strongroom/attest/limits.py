"""Every number that evidence can say is bounded here, before it is parsed."""

from __future__ import annotations

from typing import Final

MAX_EVIDENCE: Final = 64 << 10
"""Bytes: real quotes, reports and documents have 1 to 9 KB, eight GPUs with their chains some 60 KB."""

MAX_ENDORSEMENTS: Final = 1 << 20
"""Bytes of all endorsements together: Intel's collateral has 20 KB, a CRL of AMD 1 KB, a RIM 25 KB."""

MAX_ENDORSEMENT_COUNT: Final = 32

MAX_EVIDENCES: Final = 9
"""Pieces of evidence in one request: a CPU and eight more."""

MAX_CERTIFICATES: Final = 8
"""In one chain; the longest known, of NVIDIA's GPUs, has five."""
