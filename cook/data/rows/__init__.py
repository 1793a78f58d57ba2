"""The rows of a data section: located, checked, cut and cached."""
