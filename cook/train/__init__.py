"""The training loop and its components: optimizer, evaluation, checkpoints."""
