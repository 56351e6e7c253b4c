"""One file per DVC stage, and commands for people."""
