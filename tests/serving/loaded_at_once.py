"""Models of TensorFlow, Paddle and PyTorch, loaded so that Paddle comes in the middle of TensorFlow's import.

python loaded_at_once.py FOLDER
"""

import ctypes
import sys
import threading
import time
from pathlib import Path

import strongroom
from strongroom.serving.backend import BackendOptions
from strongroom.serving.backends import registry

FOLDER = Path(sys.argv[1])
SECONDS = 6.0
"""In which Paddle is imported, if nothing keeps it from that."""

set_flags = sys.setdlopenflags
shared = threading.Event()
loaded = []


def set_slowly(flags):
    set_flags(flags)
    if flags & ctypes.RTLD_GLOBAL and not shared.is_set():
        shared.set()
        end = time.monotonic() + SECONDS
        while "paddle.base.libpaddle" not in sys.modules and time.monotonic() < end:
            time.sleep(0.05)


def load(name):
    with strongroom.open(FOLDER / name, key=bytes(range(32))) as model:
        loaded.append(registry.load(model, None, BackendOptions()))


sys.setdlopenflags = set_slowly
first = threading.Thread(target=load, args=("tensorflow",))
first.start()
assert shared.wait(120), "TensorFlow does not share its symbols: this tests nothing"
second = threading.Thread(target=load, args=("paddle",))
second.start()
second.join()
first.join()
load("torch")
print("all of them" if len(loaded) == 3 else len(loaded))
