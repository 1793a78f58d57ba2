"""Recipe text to values, each with its line and column."""
