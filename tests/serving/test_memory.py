"""What requests leave behind is kept for the next ones: pages that are new cost as much as the request."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
from front_process import Server

IMAGE = np.ones((9408, 16), np.float32)
PROGRAM = """
import resource, sys
from strongroom.serving.memory import keep_for_requests

def requests(count):
    for _ in range(count):
        made = [b"x" * 600_000 for _ in range(3)]

if sys.argv[1:]:
    keep_for_requests()
requests(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
requests(100)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 100)
"""


def faults(*arguments, **environment):
    """Page faults for three blocks of 600 KB, which are 440 pages."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, timeout=120, env=env | environment
    )
    return float(done.stdout)


def test_blocks_of_requests_are_used_again():
    assert faults("keep") < 10
    assert faults() > 100  # or it is not needed any more


def test_who_has_chosen_otherwise():
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="100000") > 400


def test_a_server_uses_them_again(tmp_path):
    server = Server(tmp_path)
    try:
        piece = {"name": "x", "shape": [*IMAGE.shape], "datatype": "FP32"}
        piece["parameters"] = {"binary_data_size": IMAGE.nbytes}
        head = json.dumps({"inputs": [piece], "parameters": {"binary_data_output": True}}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        body, before = head + IMAGE.tobytes(), 0
        for number in range(60):
            if number == 20:
                before = page_faults(server.process.pid)
            status, _, answer = server.ask("POST", "/v2/models/m/infer", body, headers)
            assert status == 200
            assert len(answer) > IMAGE.nbytes
        assert (page_faults(server.process.pid) - before) / 40 < 100
    finally:
        server.kill()


def page_faults(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[7])
