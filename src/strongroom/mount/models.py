"""From what a command line names to a tree of open models."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from strongroom.errors import UsageError
from strongroom.format.paths import SEALED_SUFFIX
from strongroom.keys import Identity
from strongroom.model.location import base_name, is_url
from strongroom.model.reader import SealedModel, open_model
from strongroom.mount.tree import Tree

__all__ = ["name_and_location", "open_tree"]


def name_and_location(argument: str) -> tuple[str | None, str]:
    """``NAME=SEALED``, or ``SEALED`` alone; what exists under the whole text is that."""
    name, equals, location = argument.partition("=")
    if not equals or not location or "/" in name or os.path.exists(argument):
        return None, argument
    return name, location


def _own_name(model: SealedModel, location: str) -> str:
    """Of a directory, that of the sealed directory; of a file, the one it was sealed with."""
    if not model.is_directory:
        return next(iter(model.files)).rpartition("/")[2]
    base = base_name(location) if is_url(location) else os.path.basename(os.path.abspath(location))
    return base.removesuffix(SEALED_SUFFIX)


@contextmanager
def open_tree(
    arguments: Sequence[str], identities: Callable[[], Sequence[Identity]], *, flat: bool = False
) -> Iterator[Tree]:
    """Open models and make a tree of them; they are closed, and their keys wiped, after the block.

    Args:
        arguments: each as :func:`name_and_location` has it.
        identities: gives the keys; called once, when the first model has been found.
        flat: one model that is given without a name has its files directly in the root.

    Raises:
        UsageError: two models of one name, or a name that cannot be one.
        StrongroomError: a model cannot be opened.
    """
    keys: list[Sequence[Identity]] = []

    def once() -> Sequence[Identity]:
        if not keys:
            keys.append(identities())
        return keys[0]

    with ExitStack() as stack:
        models: dict[str, SealedModel] = {}
        for argument in arguments:
            name, location = name_and_location(argument)
            model = stack.enter_context(open_model(location, once))
            if name is None:
                name = "" if flat and len(arguments) == 1 else _own_name(model, location)
            if name in models:
                raise UsageError(
                    f"There are two models {name}.", hint=f"Give one another name: NAME={location}"
                )
            models[name] = model
        yield Tree(models)
