"""Sealed models: write, read, verify, rewrap. One virtual tree over one file or a directory."""
