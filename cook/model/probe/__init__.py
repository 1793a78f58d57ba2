"""Running a model to learn about it: example inputs, sizes, speed, and whether outputs stay the same."""
