"""Tokens on disk and in windows; knows nothing of the waveforms that they came from."""
