"""Modules used inside models, a uniform view of linear layers, and the hooks and masks kept on modules."""
