"""superpixels."""
