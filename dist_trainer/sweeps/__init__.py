"""Many runs from one configuration: the cells of a grid, here or as one array job."""
