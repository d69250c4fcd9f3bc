"""Evidence of what a machine is: collect it, verify it (authentic?), appraise it (acceptable?)."""
