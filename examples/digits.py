"""From training to tampering, on real data, in a minute.

    python examples/digits.py [--directory .demo]

Trains a small network on the handwritten digits that scikit-learn brings along, exports it for four
frameworks, seals the directory on the command line, loads every format straight from the sealed model
and predicts digits that the network has not seen. Then it flips a byte, and tries another key. A model
server answers over two protocols with mutual TLS; see serve_digits.py. At the end a key server releases
the key to a machine that attests; see key_release.py.
Exits with 1 if anything is not as it says.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import safetensors.torch
import torch
from key_release import release
from rich.table import Table
from serve_digits import serve
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from telling import claim, console, made_anew, result, run, step

import strongroom
from strongroom import loaders

ROUNDS = 5


class Network(torch.nn.Sequential):
    """Two convolutions and two dense layers; 1.1 million weights, 4 MB."""

    def __init__(self) -> None:
        super().__init__(
            torch.nn.Conv2d(1, 32, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Flatten(),
            torch.nn.Linear(64 * 4 * 4, 1024),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(1024, 10),
        )


def train() -> tuple[Network, torch.Tensor, np.ndarray]:
    """The network, and the digits and labels that were held back from it."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    known, unseen, known_labels, unseen_labels = train_test_split(
        images, labels, test_size=0.25, stratify=labels, random_state=0
    )
    torch.manual_seed(0)
    network = Network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    x, y = torch.from_numpy(known), torch.from_numpy(known_labels)
    epochs, batches = 10, -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * batches)
    for epoch in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(network(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
        console.print(f"  epoch {epoch + 1}: loss {loss.item():.3f}")
    return network.eval(), torch.from_numpy(unseen), unseen_labels


def export(network: Network, folder: Path) -> None:
    folder.mkdir(parents=True)
    example = torch.zeros(2, 1, 8, 8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # that there is no torchvision
    torch.save(network.state_dict(), folder / "digits.pt")
    safetensors.torch.save_file(network.state_dict(), folder / "digits.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; many models are in it
        torch.jit.trace(network, example).save(str(folder / "digits.torchscript"))
        torch.onnx.export(
            network,
            (example,),
            folder / "digits.onnx",
            input_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )
    (folder / "labels.txt").write_text("\n".join("0123456789") + "\n")


@dataclass(frozen=True)
class Format:
    """How the framework loads the plain file, how it is loaded sealed, and how it predicts."""

    name: str
    file: str
    plain: Callable[[Path], Any]
    sealed: Callable[[Path, Path], Any]
    predict: Callable[[Any, torch.Tensor], torch.Tensor]


def _with_weights(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    network = Network().eval()
    network.load_state_dict(weights)
    return network(images)


FORMATS = (
    Format(
        "PyTorch",
        "digits.pt",
        lambda path: torch.load(path, weights_only=True),
        lambda path, key: loaders.torch.load(path, key=key, path="digits.pt"),
        _with_weights,
    ),
    Format(
        "TorchScript",
        "digits.torchscript",
        lambda path: torch.jit.load(path),
        lambda path, key: loaders.torch.jit_load(path, key=key, path="digits.torchscript"),
        lambda module, images: module(images),
    ),
    Format(
        "safetensors",
        "digits.safetensors",
        lambda path: safetensors.torch.load_file(path),
        lambda path, key: loaders.safetensors.load_file(path, key=key, path="digits.safetensors"),
        _with_weights,
    ),
    Format(
        "ONNX Runtime",
        "digits.onnx",
        lambda path: onnxruntime.InferenceSession(path),
        lambda path, key: loaders.onnx.session(path, key=key, path="digits.onnx"),
        lambda session, images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
    ),
)


def timed(load: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the median time of it in milliseconds."""
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        loaded = load()
        times.append((time.perf_counter() - begin) * 1000)
    return loaded, statistics.median(times)


def compare(plain: Path, sealed: Path, key: Path, images: torch.Tensor, labels: np.ndarray) -> None:
    table = Table("format", "bytes", "plain load", "sealed load", "plain accuracy", "sealed accuracy")
    for column in table.columns[1:]:
        column.justify = "right"
    for form in FORMATS:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            one, plain_ms = timed(lambda form=form: form.plain(plain / form.file))
            other, sealed_ms = timed(lambda form=form: form.sealed(sealed, key))
            expected, found = form.predict(one, images), form.predict(other, images)
        accuracies = [float((out.argmax(1).numpy() == labels).mean()) for out in (expected, found)]
        table.add_row(
            form.name,
            f"{(plain / form.file).stat().st_size:,}",
            f"{plain_ms:.1f} ms",
            f"{sealed_ms:.1f} ms",
            *(f"{accuracy:.2%}" for accuracy in accuracies),
        )
        same = torch.equal(expected.argmax(1), found.argmax(1)) and torch.allclose(expected, found)
        claim(f"{form.name}: {len(labels)} unseen digits, the same predictions as plain", same)
        claim(f"{form.name}: more than 95 % of them are right", accuracies[1] > 0.95)
    console.print(table)
    console.print(
        f"Loads are medians of {ROUNDS}, files in the page cache. So small a model takes longer to open than to"
        " decrypt, and safetensors maps a plain file and reads it later; `make bench` measures large models."
    )


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0] ^ 1
        file.seek(offset)
        file.write(bytes([byte]))


def attack(folder: Path, sealed: Path, key: Path) -> None:
    victim = sealed / "digits.safetensors.sealed"
    step("Somebody flips one bit in the middle of the weights")
    flip(victim, victim.stat().st_size // 2)
    done = run("verify", sealed, "-k", key)
    claim(f"verify refuses it (exit code {done.returncode})", done.returncode == 5)
    try:
        loaders.safetensors.load_file(sealed, key=key, path="digits.safetensors")
        claim("the loader refuses it", False)
    except strongroom.errors.PayloadTampered as error:
        claim(f"the loader refuses it: {error}", True)
    flip(victim, victim.stat().st_size // 2)

    step("Somebody has another key")
    other = folder / "other.key"
    run("keygen", "-o", other)
    done = run("verify", sealed, "-k", other)
    claim(f"it does not open (exit code {done.returncode})", done.returncode == 4)

    step("Somebody reads the disk")
    weights = (folder / "plain" / "digits.safetensors").read_bytes()
    samples = [weights[at : at + 32] for at in range(1024, len(weights) - 32, 4096)]
    stored = b"".join(path.read_bytes() for path in sorted(sealed.iterdir()))
    claim(
        f"none of {len(samples)} samples of the weights is in the sealed files",
        not any(sample in stored for sample in samples),
    )


def demo(folder: Path) -> None:
    plain, sealed, key = folder / "plain", folder / "digits.sealed", folder / "key.txt"

    step("Train on handwritten digits")
    network, images, labels = train()
    export(network, plain)
    console.print("  exported:", ", ".join(sorted(path.name for path in plain.iterdir())))

    step("Seal")
    words = ["--name", "digits", "--version", "1", "--clear", "labels.txt", "--quiet"]
    claim("a key is made", run("keygen", "-o", key).returncode == 0)
    claim(
        "the directory is sealed", run("seal", plain, "-o", sealed, "-k", key, *words).returncode == 0
    )
    claim("inspect needs no key", run("inspect", sealed).returncode == 0)
    claim("all of it is authentic", run("verify", sealed, "-k", key).returncode == 0)

    step("Load straight from the sealed model, and predict")
    compare(plain, sealed, key, images, labels)

    attack(folder, sealed, key)

    with torch.inference_mode():
        expected = network(images).argmax(1).numpy()
    serve(folder / "serving", plain / "digits.onnx", key, images.numpy(), expected)
    release(folder / "release", plain)


def main() -> int:
    folder = made_anew("From training to tampering, on real data.", ".demo")
    begin = time.perf_counter()
    demo(folder)
    code = result(f"; {time.perf_counter() - begin:.0f} s")
    console.print(f"The files are in {folder}/.", soft_wrap=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
