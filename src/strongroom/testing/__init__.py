"""Shipped for tests: the generator of the format's test vectors. Nothing in the package imports it."""
