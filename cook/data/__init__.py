"""Data: rows from anywhere, prepared, cut, batched, and the tasks that read them."""
