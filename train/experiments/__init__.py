"""The paper's studies: many runs that differ in seed, threshold and method."""
