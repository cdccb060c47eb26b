"""The worth of a model: bits per sample against reference lines, statistics of its waveforms, and a page to listen."""
