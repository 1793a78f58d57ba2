"""Data: reading, preparing, cutting and batching rows, and the tasks that use them."""
