"""Small pipelines of real architectures with random weights."""

import json

import torch
import transformers


def tokenizer(folder):
    """The least that is a CLIP tokenizer: letters, and a few words."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)]
    merges = [("s", "e"), ("a", "l</w>"), ("se", "al</w>")]
    words = [*letters, *(f"{c}</w>" for c in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n"
    )
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


def stable_diffusion(folder, width=32, dtype=torch.float32):
    """A StableDiffusionPipeline; ``width`` is a multiple of 32."""
    import diffusers

    torch.manual_seed(11)
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(width, 2 * width),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
    )
    words = tokenizer(folder / "words")
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=2,
            max_position_embeddings=16,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
            pad_token_id=1,
        )
    )
    return diffusers.StableDiffusionPipeline(
        vae=vae.to(dtype),
        text_encoder=text.to(dtype),
        tokenizer=words,
        unet=unet.to(dtype),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def picture(pipeline):
    """Two steps of a seal; an array."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        "a seal",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
        height=16,
        width=16,
    ).images
