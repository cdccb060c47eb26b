"""Speed and memory, measured on this machine beside the peers; `make bench` runs all that a CPU can show."""
