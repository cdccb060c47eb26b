"""`python -m audio_ct` is the command line."""

from audio_ct.cli import main

if __name__ == "__main__":
    main()
