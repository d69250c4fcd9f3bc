"""Certificates for mutual TLS: made, and looked at."""
