"""The pure functions of training: state, loss, update and evaluation."""
