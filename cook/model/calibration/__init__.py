"""Statistics of the inputs of linear layers, on calibration examples."""
