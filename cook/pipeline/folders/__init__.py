"""Output folders: what a run may write, what it resumes or rebuilds, and how a result is delivered."""
