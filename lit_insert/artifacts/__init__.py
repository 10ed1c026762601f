"""Files that outlive a run: exported folders, checkpoints as weights, the hub, model cards."""
