"""Every key of a recipe as JSON Schema, and errors in words."""
