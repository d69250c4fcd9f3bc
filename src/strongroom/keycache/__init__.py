"""The key cache: one per node; attests once, holds leases, serves the processes of its machine."""
