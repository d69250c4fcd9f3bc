"""What other systems have encrypted: read, and written where somebody still needs it."""
