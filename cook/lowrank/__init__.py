"""Low rank: matrices that become products of two smaller ones, one method a file."""
