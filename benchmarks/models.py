"""The models that are measured, in every format; made once, in a directory that is not kept in git.

    python benchmarks/models.py DIR [llama resnet …]

Random weights of real architectures: a Llama-like bf16 state dict of 1.82 GB and a ResNet-50-like
one of 102 MB. Values are random, so that nothing compresses or is shared.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

KEY = hashlib.sha256(b"benchmark key, protects nothing").digest()


def llama() -> dict[str, torch.Tensor]:
    """Hidden 2048, 14 layers, 32 query and 8 key heads of 128, MLP 5632, vocabulary 32000.

    909 M parameters, 1.82 GB in bf16; a query projection has 16.8 MB.
    """
    hidden, mlp, vocabulary, layers, queries, keys = 2048, 5632, 32000, 14, 4096, 1024

    def weight(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16).normal_()

    tensors = {"model.embed_tokens.weight": weight(vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}self_attn.q_proj.weight"] = weight(queries, hidden)
        tensors[f"{prefix}self_attn.k_proj.weight"] = weight(keys, hidden)
        tensors[f"{prefix}self_attn.v_proj.weight"] = weight(keys, hidden)
        tensors[f"{prefix}self_attn.o_proj.weight"] = weight(hidden, queries)
        tensors[f"{prefix}mlp.gate_proj.weight"] = weight(mlp, hidden)
        tensors[f"{prefix}mlp.up_proj.weight"] = weight(mlp, hidden)
        tensors[f"{prefix}mlp.down_proj.weight"] = weight(hidden, mlp)
        tensors[f"{prefix}input_layernorm.weight"] = weight(hidden)
        tensors[f"{prefix}post_attention_layernorm.weight"] = weight(hidden)
    tensors["model.norm.weight"] = weight(hidden)
    tensors["lm_head.weight"] = weight(vocabulary, hidden)
    return tensors


def resnet() -> dict[str, torch.Tensor]:
    """The parameters and buffers of ResNet-50 v1.5, float32: 102 MB."""
    tensors: dict[str, torch.Tensor] = {}

    def convolution(name: str, norm: str, inside: int, outside: int, size: int) -> None:
        tensors[f"{name}.weight"] = torch.randn(outside, inside, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"{norm}.{part}"] = torch.randn(outside)
        tensors[f"{norm}.num_batches_tracked"] = torch.tensor(0)

    convolution("conv1", "bn1", 3, 64, 7)
    inside = 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}."
            convolution(f"{prefix}conv1", f"{prefix}bn1", inside, width, 1)
            convolution(f"{prefix}conv2", f"{prefix}bn2", width, width, 3)
            convolution(f"{prefix}conv3", f"{prefix}bn3", width, width * 4, 1)
            if block == 0:
                convolution(f"{prefix}downsample.0", f"{prefix}downsample.1", inside, width * 4, 1)
            inside = width * 4
    tensors["fc.weight"], tensors["fc.bias"] = torch.randn(1000, 2048), torch.randn(1000)
    return tensors


def tiny() -> dict[str, torch.Tensor]:
    """For the load that is not measured: 16 KiB."""
    return {"weight": torch.randn(64, 64)}


def jwk() -> dict[str, Any]:
    """The key as cryptotensors wants it."""
    return {"kty": "oct", "alg": "aes256gcm", "kid": "bench", "k": base64.b64encode(KEY).decode()}


def signing_jwk() -> dict[str, Any]:
    """An Ed25519 key, which cryptotensors signs its header with."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(KEY)

    def encode(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    return {
        "kty": "okp",
        "alg": "ed25519",
        "kid": "bench-sign",
        "d": encode(private.private_bytes_raw()),
        "x": encode(private.public_key().public_bytes_raw()),
    }


def _safetensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _sealed(path: Path, source: Path) -> None:
    import strongroom

    strongroom.seal(source, path, key=KEY)


def _tensorizer(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from tensorizer import EncryptionParams, TensorSerializer

    serializer = TensorSerializer(str(path), encryption=EncryptionParams(key=KEY))
    serializer.write_state_dict(tensors)
    serializer.close()


def _cryptotensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    from cryptotensors.torch import save_file

    save_file(tensors, path, config={"enc_key": jwk(), "sign_key": signing_jwk()})


def _fernet(path: Path, source: Path) -> None:
    from cryptography.fernet import Fernet

    path.write_bytes(Fernet(base64.urlsafe_b64encode(KEY)).encrypt(source.read_bytes()))


def make(directory: Path, name: str) -> dict[str, str]:
    """Write every format of one model; returns format → path."""
    paths = {
        kind: directory / f"{name}.{kind}"
        for kind in ("safetensors", "pt", "sealed", "pt.sealed", "tensors", "cryptotensors", "fernet")
    }
    index = directory / f"{name}.json"
    if not index.exists():
        directory.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        tensors = {"llama": llama, "resnet": resnet, "tiny": tiny}[name]()
        _safetensors(tensors, paths["safetensors"])
        torch.save(tensors, paths["pt"])
        _tensorizer(tensors, paths["tensors"])
        _cryptotensors(tensors, paths["cryptotensors"])
        del tensors
        for kind, source in (("sealed", "safetensors"), ("pt.sealed", "pt")):
            _sealed(paths[kind], paths[source])
        _fernet(paths["fernet"], paths["pt"])
        index.write_text(json.dumps({kind: str(path) for kind, path in paths.items()}))
        os.sync()
    return {str(k): str(v) for k, v in json.loads(index.read_text()).items()}


if __name__ == "__main__":
    for model in sys.argv[2:] or ["llama", "resnet"]:
        print(make(Path(sys.argv[1]), model))
