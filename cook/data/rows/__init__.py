"""The rows of a data section: found, checked, cut and kept on disk."""
