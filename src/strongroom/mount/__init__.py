"""Sealed models for programs that read files: a read-only view of their plaintext, in memory alone.

:mod:`.tree` makes one tree of several open models; :mod:`.fuse` shows it at a directory::

    with strongroom.open("resnet.sealed", key="key.txt") as model:
        with mounted(Tree({"resnet": model}), "/models") as mount:
            mount.wait()  # until somebody unmounts it
"""
