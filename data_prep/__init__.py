"""Preparation of corpora: one file per corpus, all with the stages of `data_prep.skeleton`.

In the wheel this package is audio_ct.data_prep, since others have a `data_prep` too: that is why its modules import
each other by relative names.
"""
