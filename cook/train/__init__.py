"""The one training loop and what it needs: data, batches, tasks, evaluation, checkpoints."""
