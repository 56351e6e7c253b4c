"""One file per DVC stage, and commands for people."""

import os

# Threads that wait for one another should soon sleep: where something else keeps a core busy, spinning made training five times slower.
# libgomp reads it when torch is imported, so it stands here, before any stage imports anything.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
