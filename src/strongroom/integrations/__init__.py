"""Sealed models inside the servers of others: Ray Serve, KServe."""
