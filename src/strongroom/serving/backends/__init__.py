"""One small module per framework."""
