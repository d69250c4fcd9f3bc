"""PyTorch: compiled packages, and state dicts that are sealed and loaded with a key found by id."""

import aotinductor_package
from marking import COLUMNS, marked


def make_package(folder, size):
    return aotinductor_package.make(folder)  # of one size, whatever is asked for


def load_package(sealed):
    import torch

    from strongroom.loaders import torch as loader

    model = loader.aoti_load_package(sealed)
    model(torch.zeros(2, COLUMNS))
    return model


def _module(rows):
    import torch

    with torch.device("meta"):
        module = torch.nn.Module()
        for i in range(8):
            module.register_parameter(f"w{i}", torch.nn.Parameter(torch.empty(rows, COLUMNS)))
    return module


def make_state(folder, size):
    import torch

    rows = size // 8 // (4 * COLUMNS)
    torch.save({f"w{i}": torch.from_numpy(marked(rows, i)) for i in range(8)}, folder / "m.pt")
    return folder / "m.pt"


def _load_into(sealed, assign):
    import torch

    import strongroom
    from strongroom.loaders import torch as loader

    with strongroom.open(sealed) as model:
        module = _module(model.size // 8 // (4 * COLUMNS))
    if not assign:
        module.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
    loader.load_into(module, sealed, assign=assign)
    return module


def load_into(sealed):
    return _load_into(sealed, assign=False)


def load_into_assigned(sealed):
    return _load_into(sealed, assign=True)


CASES = {
    "aotinductor": (make_package, load_package),
    "torch load_into": (make_state, load_into),
    "torch load_into assign": (make_state, load_into_assigned),
}

COPIES = {
    # The parameters that were there before count as one.
    "torch load_into": (2, 1),
    "torch load_into assign": (1, 1),
}
