"""Training data: scan of folders, index, partition, crops, augmentation, loaders."""
