"""llama.cpp: llamas with a tokenizer of single bytes, written by the gguf package."""

from marking import COLUMNS, marked

VOCABULARY = 320


def write_gguf(place, *, layers=2, width=64, weights=None, tensors_in_a_piece=0, file_type=None):
    """A llama of random weights; ``weights(*shape)`` makes the large ones."""
    import gguf
    import numpy

    rng = numpy.random.default_rng(0)

    def random(*shape):
        return rng.standard_normal(shape, dtype="f4") / 8

    weights = weights or random
    writer = gguf.GGUFWriter(place, "llama", split_max_tensors=tensors_in_a_piece)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(2 * width)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(width // 4)
    writer.add_vocab_size(VOCABULARY)
    control, byte, normal = 3, 6, 1
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [2, control, control, *[byte] * 256]
    words = VOCABULARY - len(tokens)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*tokens, *(f"word{i}" for i in range(words))])
    writer.add_token_types([*kinds, *[normal] * words])
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_tensor("token_embd.weight", random(VOCABULARY, width))
    writer.add_tensor("output_norm.weight", numpy.ones(width, "f4"))
    writer.add_tensor("output.weight", random(VOCABULARY, width))
    for i in range(layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", numpy.ones(width, "f4"))
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            writer.add_tensor(f"blk.{i}.{part}.weight", weights(width, width))
        writer.add_tensor(f"blk.{i}.ffn_gate.weight", weights(2 * width, width))
        writer.add_tensor(f"blk.{i}.ffn_up.weight", weights(2 * width, width))
        writer.add_tensor(f"blk.{i}.ffn_down.weight", weights(width, 2 * width))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def write_lora(place, width=64, rank=4):
    """An adapter for the queries of the first layer."""
    import gguf
    import numpy

    rng = numpy.random.default_rng(1)
    writer = gguf.GGUFWriter(place, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 8.0)
    for part, shape in (("a", (rank, width)), ("b", (width, rank))):
        name = f"blk.0.attn_q.weight.lora_{part}"
        writer.add_tensor(name, rng.standard_normal(shape, dtype="f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return place


def _marked_weights(*shape):
    return marked(shape[0] * shape[1] // COLUMNS, shape[0]).reshape(shape)


def make_gguf(folder, size):
    width = 1024
    layers = max(1, size // (40 * width**2))
    return write_gguf(folder / "m.gguf", layers=layers, width=width, weights=_marked_weights)


def make_split(folder, size):
    (folder / "split").mkdir()
    options = {"width": 512, "weights": _marked_weights, "tensors_in_a_piece": 8}
    layers = max(1, size // (40 * 512**2))
    write_gguf(folder / "split" / "m.gguf", layers=layers, **options)
    return folder / "split"


def load_gguf(sealed, **options):
    from strongroom.loaders import llama_cpp

    model = llama_cpp.llama(sealed, n_ctx=32, n_batch=32, **options)
    model.eval([1, 5, 9])
    return model


def load_gguf_copied(sealed):
    return load_gguf(sealed, use_mmap=False)


CASES = {
    "llama.cpp": (make_gguf, load_gguf),
    "llama.cpp copied": (make_gguf, load_gguf_copied),
    "llama.cpp split": (make_split, load_gguf),
}
COPIES = {"llama.cpp": (1, 1)}
