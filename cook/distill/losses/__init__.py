"""Loss functions over large vocabularies: in chunks, and from truncated distributions."""
