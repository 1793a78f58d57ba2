"""Tests of cook.model."""
