"""Autoregressive models of tokens, all behind one interface (`audio_ct.models.interface`)."""
