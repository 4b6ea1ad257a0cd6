"""What a training run is made of: batches, augmentation, audio that is read ahead, the run folder."""
