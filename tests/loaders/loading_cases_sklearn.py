"""scikit-learn: nearest neighbours, whose weights are the rows they were fitted on."""

from marking import COLUMNS, marked


def neighbours(size):
    import numpy
    from sklearn.neighbors import KNeighborsClassifier

    rows = size // (4 * COLUMNS)
    return KNeighborsClassifier(algorithm="brute").fit(marked(rows, 0), numpy.arange(rows) % 7)


def make_skops(folder, size):
    from skops import io

    io.dump(neighbours(size), folder / "m.skops")
    return folder / "m.skops"


def make_joblib(folder, size):
    import joblib

    joblib.dump(neighbours(size), folder / "m.joblib")
    return folder / "m.joblib"


def make_compressed(folder, size):
    import joblib

    joblib.dump(neighbours(size), folder / "m.joblib", compress=("zlib", 1))
    return folder / "m.joblib"


def load_skops(sealed):
    from strongroom.loaders import sklearn

    return sklearn.skops_load(sealed)


def load_joblib(sealed):
    from strongroom.loaders import sklearn

    return sklearn.joblib_load(sealed, allow_pickle=True)


def load_joblib_mapped(sealed):
    from strongroom.loaders import sklearn

    return sklearn.joblib_load(sealed, "r", allow_pickle=True)


CASES = {
    "skops": (make_skops, load_skops),
    "joblib": (make_joblib, load_joblib),
    "joblib compressed": (make_compressed, load_joblib),
    "joblib mapped": (make_joblib, load_joblib_mapped),
}
# One array is the model here: the one that skops has twice while it reads it.
COPIES = {"skops": (2, 1), "joblib": (1, 1)}
