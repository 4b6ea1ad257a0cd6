"""Fair comparisons of methods: grids, their cells, and the records of the results."""
