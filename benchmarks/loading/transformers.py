"""Transformers: a Llama in single precision, whole and in shards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

LAYER = 25.2e6
# Bytes of one layer of the width below; the vocabulary has 8.4e6.


def llama(size: int) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=1024,
        intermediate_size=1024 if size > 20e6 else 128,
        num_hidden_layers=max(1, round((size - 8.4e6) / LAYER)) if size > 20e6 else 1,
        num_attention_heads=16,
        num_key_value_heads=8,
    )
    return transformers.LlamaForCausalLM(config)


def build(folder: Path, size: int) -> Path:
    llama(size).save_pretrained(folder / "llama")
    return folder / "llama"


def build_shards(folder: Path, size: int) -> Path:
    llama(size).save_pretrained(folder / "llama", max_shard_size=size // 3)
    return folder / "llama"


def in_memory(model: Any) -> Any:
    """The plain load maps its files and reads nothing; what is loaded from memory is in memory."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def plain(place: Path) -> Any:
    return in_memory(transformers.LlamaForCausalLM.from_pretrained(place))


def sealed(place: Path, key: bytes) -> Any:
    from strongroom.loaders import transformers as loader

    return loader.from_pretrained(place, key=key)


CASES = {
    "transformers from_pretrained": (build, plain, sealed),
    "transformers, 3 shards": (build_shards, plain, sealed),
}
