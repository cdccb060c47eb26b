"""Models of raw speech, sample by sample: a Compressive Transformer beside Transformer-XL and WaveNet."""

__version__ = "0.1.0"
