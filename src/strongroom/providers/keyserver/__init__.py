"""The key server, seen from a machine that wants keys and from one that seals."""
