"""LightGBM: one real tree, as often as the size asks for."""

import re

from marking import MARK


def make_lightgbm(folder, size):
    import lightgbm
    import numpy

    rng = numpy.random.default_rng(0)
    rows, labels = rng.random((20000, 4)), rng.random(20000)
    names = [f"{MARK.decode()}{i}" for i in range(4)]
    parameters = {"num_leaves": 5000, "min_data_in_leaf": 1, "verbose": -1}
    grown = lightgbm.train(parameters, lightgbm.Dataset(rows, labels, feature_name=names), 1)
    head, tree, tail = re.split(r"Tree=0\n|(?=end of trees)", grown.model_to_string(), maxsplit=2)
    count = size // len(tree)
    trees = [f"Tree={i}\n{tree}" for i in range(count)]
    sizes = " ".join(str(len(text)) for text in trees)
    head = re.sub("tree_sizes=.*", f"tree_sizes={sizes}", head)
    (folder / "m.txt").write_text("".join([head, *trees, tail]))
    return folder / "m.txt"


def load_lightgbm(sealed):
    from strongroom.loaders import lightgbm

    booster = lightgbm.booster(sealed)
    booster.predict([[0.1, 0.2, 0.3, 0.4]])
    return booster


CASES = {"lightgbm": (make_lightgbm, load_lightgbm)}
COPIES = {}
