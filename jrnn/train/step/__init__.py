"""The pure training step: state, loss, update, evaluation."""
