"""The messages of the wire, written from the protocols; compiled when the package is built."""
