"""Key servers, key caches and small models for servers of others."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / one) for one in ("integrations", "keycache", "serving")]
