"""Dense Gaussian filtering of values on a set of points: exact, and on the permutohedral lattice."""
