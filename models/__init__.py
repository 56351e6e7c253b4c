"""What is computed: networks and losses. Imports nothing of ours above this folder."""
