"""The components of a training run: options, data, batches, augmentation, module, trainer and run folder."""
