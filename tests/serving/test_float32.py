"""Numbers of JSON as float32: as numpy makes them, and none becomes infinite."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from strongroom.serving.tensors import _PACKED, float32

LARGEST = float(np.finfo(np.float32).max)
HALF = 2.0**103  # of the last place of the largest: from there on, it is rounded to infinity


@pytest.mark.parametrize("count", [0, 1, 17, _PACKED, _PACKED + 1])
def test_as_numpy_makes_them(count):
    generator = random.Random(count)
    values = [generator.choice((1, -1)) * math.exp(generator.uniform(-110, 88)) for _ in range(count)]
    values[:5] = [0, -0.0, math.nan, math.inf, -(2**63)][:count]
    found = float32(values)
    assert found.dtype == np.float32
    assert found.flags.writeable
    assert found.tobytes() == np.array(values, np.float32).tobytes()


@pytest.mark.parametrize("more", [0, _PACKED])
@pytest.mark.parametrize("sign", [1, -1])
def test_too_large(more, sign):
    below = math.nextafter(LARGEST + HALF, 0)
    assert float32([sign * below, *[0.5] * more])[0] == sign * LARGEST
    with pytest.raises((OverflowError, FloatingPointError)):
        float32([*[0.5] * more, sign * (LARGEST + HALF)])
