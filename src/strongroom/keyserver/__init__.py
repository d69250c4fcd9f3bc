"""The key server: keeps model keys, and releases them to machines that have proved what they are."""
