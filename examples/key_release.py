"""A key that leaves its server only for a machine that proves what it is; the second half of the demo.

``release`` sets up a key server (one directory, SQLite), registers a model there while sealing it, and
loads it on a "node" without a key on any command line: a key cache attests and holds the key. Then the
policy asks for another machine, and the node is refused, with reasons in the audit trail.

There is no TEE here. The node's evidence is synthetic: a quote of Intel TDX in its real format, under a
TEST ROOT of its own, which this key server was told to believe when it was made, and no other does.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from telling import PROGRAM, claim, console, run, show, step

MR_TD = "d1617d" * 16
RTMR1 = "7e57" * 24
LOAD = """
import sys, strongroom
from strongroom.loaders import safetensors
weights = safetensors.load_file(sys.argv[1], path="digits.safetensors")
print(len(weights), "tensors,", sum(t.numel() for t in weights.values()), "weights")
"""


def policy(version: int, mr_td: str) -> dict[str, object]:
    """One machine image may have the key, for an hour at a time."""
    return {
        "id": "digits",
        "version": version,
        "keys": ["demo/digits"],
        "test_roots": True,
        "any": [{"kind": "tdx", "mr_td": [mr_td], "rtmr": {"1": [RTMR1]}}],
        "lease": {"seconds": 3600},
    }


def held_port() -> socket.socket:
    """Nobody else is given the port of a socket that is bound; where it does not listen, a server may."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


@contextmanager
def background(
    log: Path, *words: str | Path, ready: list[str | Path], **env: str | Path
) -> Iterator[None]:
    """A part of the real program that keeps running, from when it is ready to the end of the block."""
    show("strongroom", *words, "&")
    environment = os.environ | {name: str(value) for name, value in env.items()}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [PROGRAM, *map(str, words)], stdout=output, stderr=output, env=environment
        )
    try:
        for _ in range(300):
            if process.poll() is not None:
                raise SystemExit(f"it has ended: {log.read_text()}")
            probe = [PROGRAM, *map(str, ready)]
            if not subprocess.run(probe, env=environment, capture_output=True, check=False).returncode:
                break
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)  # as Ctrl-C; after SIGTERM it would wait for load balancers
        process.wait(30)


def release(folder: Path, plain: Path) -> None:
    """Everything, in ``folder``, which must not be there; ``plain`` is the directory of the model."""
    folder.mkdir()
    node, server, sealed = folder / "node", folder / "server", folder / "digits.sealed"

    step("A machine that can prove what it is (synthetic, under a TEST ROOT)")
    command = [sys.executable, "-m", "strongroom.testing.synthetic_node", str(node), "--init"]
    claim("the node has an identity", subprocess.run(command, check=False).returncode == 0)

    step("A key server")
    held = held_port()
    port = held.getsockname()[1]
    root_key = folder / "root.kek"
    words = ["--kek-key-file", root_key, "--insecure-test-roots", node, "--quiet"]
    done = run("keyserver", "init", server, "--url", f"https://localhost:{port}", *words)
    claim("it is set up in one directory", done.returncode == 0)
    # What clients know of the server, and where the owner's token lies.
    owner = {"STRONGROOM_KEYSERVER": server / "owner.json"}
    running = background(
        folder / "keyserver.log",
        *("keyserver", "run", "-c", server / "keyserver.toml"),
        ready=["policy", "show"],
        **owner,
    )
    with held, running:
        serve(folder, plain, sealed, port, owner)


def serve(folder: Path, plain: Path, sealed: Path, port: int, owner: dict[str, Path]) -> None:
    step("Seal: the key is made, registered, and kept nowhere else")
    url = f"https://localhost:{port}/demo/digits"
    words = ["--clear", "labels.txt", "--quiet"]
    claim(
        "the model is sealed",
        run("seal", plain, "-o", sealed, "-r", url, *words, **owner).returncode == 0,
    )
    run("inspect", sealed)
    first = folder / "policy-1.json"
    first.write_text(json.dumps(policy(1, MR_TD), indent=1))
    claim("a policy says who may have it", run("policy", "put", first, **owner).returncode == 0)

    # Not in the folder: the path of a socket may have no more than about 80 bytes.
    with tempfile.TemporaryDirectory(prefix="strongroom-") as short:
        keys = Path(short) / "keys.sock"

        step("The node: attest once, hold the key, serve the processes of the machine")
        cache(folder, sealed, keys, accepted=True)

        step("The policy wants another image from now on")
        second = folder / "policy-2.json"
        second.write_text(json.dumps(policy(2, secrets.token_hex(48)), indent=1))
        claim("the owner changes it", run("policy", "put", second, **owner).returncode == 0)
        cache(folder, sealed, keys, accepted=False)

    step("What the owner sees")
    done = run("audit", "tail", "-n", "6", **owner)
    claim("the refusal is on record, with its reason", "mr_td" in done.stdout)
    claim("the chain of records holds", run("audit", "verify", **owner).returncode == 0)


def cache(folder: Path, sealed: Path, keys: Path, *, accepted: bool) -> None:
    """Start the key cache of the node, and load the model with what it gives."""
    program = f"{sys.executable} -m strongroom.testing.synthetic_node {(folder / 'node').absolute()}"
    attester = f"exec:{program} --mr-td {MR_TD} --rtmr1 {RTMR1}"
    profile = folder / "server" / "profile.json"
    words = ["--server", profile, "--socket", keys, "--attester", attester]
    log = folder / "keycache.log"
    status = ["keycache", "status", "--socket", keys]
    with background(log, "keycache", "run", *words, ready=status):
        environment = {"STRONGROOM_KEYSERVER": f"unix://{keys}"}
        show(*(f"{name}={value}" for name, value in environment.items()), "python -c '…' ", sealed)
        done = subprocess.run(
            [sys.executable, "-c", LOAD, str(sealed)],
            env=os.environ | environment,
            text=True,
            capture_output=True,
            check=False,
        )
        said = (done.stdout + done.stderr).strip().splitlines()[-1]
        console.print(said, markup=False, soft_wrap=True)
        if accepted:
            claim("the model is loaded, and nobody has named a key", done.returncode == 0)
            run(*status)
        else:
            claim("the node is refused", "ReleaseDenied" in said)
            done = run("verify", sealed, **environment)
            claim(f"so is the command line (exit code {done.returncode})", done.returncode == 4)
