"""Audio files and signals: reading, writing, formats, levels, spectrograms, synthetic examples."""
