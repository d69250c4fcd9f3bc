"""Key servers, key caches and small graphs are those of other tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / one) for one in ("integrations", "keycache", "loaders", "serving")]
