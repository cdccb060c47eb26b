"""Turning a checkpoint back into waveforms."""
