"""Weights with a mark in them, to be found wherever they leak to."""

MARK = b"PLAINTEXTOFMODEL"
COLUMNS = 1024


def marked(rows, seed):
    """float32 rows of COLUMNS: random letters, with MARK in every 64 bytes. All values are finite."""
    import numpy

    rng = numpy.random.default_rng(seed)
    letters = rng.integers(97, 123, (rows * COLUMNS // 16, 64), dtype="u1")
    letters[:, 16:32] = numpy.frombuffer(MARK, dtype="u1")
    return letters.view("f4").reshape(rows, COLUMNS)
