"""LightGBM: boosters from sealed model files."""

from __future__ import annotations

import mmap
import os
import re
from typing import Any, Final

from strongroom.errors import FormatError
from strongroom.loaders.source import ModelSource, extra_for, opened, pick
from strongroom.providers.sources import KeySource

try:
    import lightgbm
except ModuleNotFoundError as error:
    raise extra_for(error, "lightgbm", "Loading LightGBM models", "lightgbm") from None

__all__ = ["booster"]

_SUFFIXES: Final = (".txt", ".lgb", ".lgbm", ".model")
_WHOLE: Final = re.compile(rb"tree\n.*\nend of trees\n", re.DOTALL)


def booster(
    model_file: ModelSource,
    params: dict[str, Any] | None = None,
    *,
    key: KeySource | None = None,
    path: str | None = None,
) -> Any:
    """``lightgbm.Booster(params, model_file=model_file)`` on a sealed model.

    LightGBM reads the text from a memory file into a string of its own, and makes the trees of it:
    both are freed when it is loaded. (As ``model_str`` the text is there twice as well, and before
    4.7 its parameters are lost.)

    Args:
        model_file: the place of a sealed file or directory, or an open model.
        params: LightGBM warns that the model's own are used.
        path: the model file, if there are several.

    Raises:
        StrongroomError: the model cannot be opened, is not authentic, or is no LightGBM model.
        LightGBMError: as LightGBM's own loader raises it.
    """
    with opened(model_file, key) as model:
        name = pick(model, path, _SUFFIXES, "LightGBM")
        with model.path(name) as place:
            # On a file that is cut short, or has CR LF, LightGBM 4.7 crashes the process.
            if not _is_whole(place):
                raise FormatError(
                    f"{name} is not a whole LightGBM model.",
                    hint="Seal what booster.save_model wrote, with its own ends of lines.",
                )
            return lightgbm.Booster(params, model_file=place)


def _is_whole(place: str) -> bool:
    with open(place, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as text:
            return _WHOLE.match(text) is not None
