"""Cryptography: correct only when used as the format's specification says."""
