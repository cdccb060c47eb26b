"""What a model is worth: bits per sample against reference lines, statistics of its waveforms, and a page to listen."""
