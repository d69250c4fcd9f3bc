"""Diffusers: a pipeline of three models, whole and in shards."""

from marking import COLUMNS, marked


def _pipeline(folder, size):
    import torch
    from diffusers_pipeline import stable_diffusion

    # The weights grow with the square of the width; 32 gives 5.5 MB.
    width = max(32, int((size / (5.5e6)) ** 0.5 * 32) // 32 * 32)
    pipeline = stable_diffusion(folder, width)
    seed = 0
    for name in ("unet", "vae", "text_encoder"):
        for parameter in pipeline.components[name].parameters():
            content = torch.from_numpy(marked(-(-parameter.numel() // COLUMNS), seed)).view(-1)
            parameter.data.copy_(content[: parameter.numel()].view(parameter.shape))
            seed += 1
    return pipeline


def make_pipeline(folder, size):
    _pipeline(folder, size).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def make_shards(folder, size):
    _pipeline(folder, size).save_pretrained(folder / "pipeline", max_shard_size=size // 2)
    return folder / "pipeline"


def load_pipeline(sealed):
    from strongroom.loaders import diffusers

    return diffusers.from_pretrained(sealed)


CASES = {
    "diffusers": (make_pipeline, load_pipeline),
    "diffusers shards": (make_shards, load_pipeline),
}

COPIES = {
    "diffusers": (1, 1),
    "diffusers shards": (1, 1),
}
