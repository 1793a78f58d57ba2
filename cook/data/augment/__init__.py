"""Data augmentation for text."""
