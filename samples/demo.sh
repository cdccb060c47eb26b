#!/bin/sh
# The whole road on synthetic speech: prepare, train three models, compare. Run by `make demo`; safe to run again.
set -eu
STORE=stores/demo
RUNS=runs/demo
if [ ! -e "$STORE" ]; then
    audio-ct prep demo --out "$STORE" --jobs 2
fi
for model in compressive_transformer transformer_xl wavenet; do
    if [ -e "$RUNS/$model" ]; then resume=--resume; else resume=; fi
    # shellcheck disable=SC2086
    audio-ct train "recipes/demo/$model.yaml" --run-dir "$RUNS/$model" $resume
done
audio-ct compare "$RUNS/compressive_transformer" "$RUNS/transformer_xl" "$RUNS/wavenet" \
    --out "$RUNS/comparison" --num 2 --seconds 0.75 --title "Demo: three models of synthetic speech"
