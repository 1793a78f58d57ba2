"""Statistics of what linear layers get, on calibration examples."""
