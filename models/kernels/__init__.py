"""GPU kernels in Triton, each beside the plain form that it must equal."""
