"""Low rank: linear layers as two smaller ones, one method a file."""
