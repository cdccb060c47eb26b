#!/bin/sh
# Hear a model that was trained for hours; then the whole road on synthetic speech: prepare, train three models side by
# side for a minute or two each, compare. Run by `make demo`; safe to run again.
set -eu
STORE=stores/demo
RUNS=runs/demo
MODELS="compressive_transformer transformer_xl wavenet"

echo "First to hear: a Compressive Transformer trained for 95 minutes on recorded letters and syllables, which comes with the"
echo "package (samples/pretrained/syllables/README.md). It starts from silence and speaks no words; samples/gallery/index.html"
echo "has more:"
audio-ct sample syllables --num 2 --seconds 0.5 --seed 1000 --out "$RUNS/syllables" --overwrite

echo "Now three small models of a synthetic voice at 8 kHz, trained here from nothing:"
if [ ! -e "$STORE" ]; then
    audio-ct prep demo --out "$STORE" --jobs 2
fi
pids=
trap 'kill $pids 2>/dev/null || :; wait || :' EXIT
# The terminal has told the trainings as well, which write checkpoints; another signal would end them at once.
trap 'trap - EXIT INT; wait || :; exit 130' INT
trap 'exit 143' TERM
for model in $MODELS; do
    if [ -e "$RUNS/$model" ]; then resume=--resume; else resume=; fi
    # shellcheck disable=SC2086
    audio-ct train "recipes/demo/$model.yaml" --run-dir "$RUNS/$model" $resume >"$RUNS/$model.log" 2>&1 &
    pids="$pids $!"
done
echo "training, a minute or two; to watch: tail -f $RUNS/*.log"
failed=
for pid in $pids; do
    wait "$pid" || failed=1
done
trap - EXIT INT TERM
for model in $MODELS; do
    tail -n 3 "$RUNS/$model.log"
done
[ -z "$failed" ] || exit 2
audio-ct compare "$RUNS/compressive_transformer" "$RUNS/transformer_xl" "$RUNS/wavenet" --out "$RUNS/comparison" \
    --num 2 --seconds 0.75 --prompt-seconds 0.5 --max-tokens 60000 --title "Demo: three models of synthetic speech"
