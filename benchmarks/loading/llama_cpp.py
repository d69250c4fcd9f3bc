"""llama.cpp: a GGUF of a llama of width 1024, float32, mapped; and one that is copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp
import numpy
from memory import memory_file

OPTIONS: dict[str, Any] = {"n_ctx": 64, "n_batch": 64, "verbose": False}
WIDTH = 1024


def build(folder: Path, size: int) -> Path:
    import gguf

    rng = numpy.random.default_rng(0)
    layers = max(1, size // (40 * WIDTH**2))
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(16)
    writer.add_head_count_kv(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 16)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3, *[6] * 256])
    writer.add_token_scores([0.0] * len(tokens))

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", rng.random(shape, dtype="f4") / WIDTH)

    add("token_embd", len(tokens), WIDTH)
    add("output_norm", WIDTH)
    add("output", len(tokens), WIDTH)
    for i in range(layers):
        add(f"blk.{i}.attn_norm", WIDTH)
        add(f"blk.{i}.ffn_norm", WIDTH)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}", WIDTH, WIDTH)
        add(f"blk.{i}.ffn_gate", 2 * WIDTH, WIDTH)
        add(f"blk.{i}.ffn_up", 2 * WIDTH, WIDTH)
        add(f"blk.{i}.ffn_down", WIDTH, 2 * WIDTH)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def plain(place: Path, use_mmap: bool = True) -> object:
    """From a memory file: the path itself would be mapped, and not read at all."""
    with memory_file(place) as path:
        return llama_cpp.Llama(path, use_mmap=use_mmap, **OPTIONS)


def sealed(place: Path, key: bytes, use_mmap: bool | None = None) -> object:
    from strongroom.loaders import llama_cpp as loader

    return loader.llama(place, key=key, use_mmap=use_mmap, **OPTIONS)


def plain_copied(place: Path) -> object:
    return plain(place, use_mmap=False)


def sealed_copied(place: Path, key: bytes) -> object:
    return sealed(place, key, use_mmap=False)


CASES = {
    "llama.cpp": (build, plain, sealed),
    "llama.cpp copied": (build, plain_copied, sealed_copied),
}
