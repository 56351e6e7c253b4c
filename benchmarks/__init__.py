"""Commands that print what was measured in one run, as ratios. Nothing here is asserted."""
