"""Modules that stand in a model, views over linear layers, and what is kept on modules: hooks and masks."""
