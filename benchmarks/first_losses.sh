#!/bin/sh
# The first losses of recipes/demo, recipes/small and recipes/paper (shrunk), for a change that must not change results:
#
#     benchmarks/first_losses.sh CHECKOUT OUT SPEECH_STORE DEMO_STORE [WINDOWS]
#
# trains WINDOWS (200) windows of each recipe with the code of a checkout, in float32 and the first 8 of some in
# bfloat16, and writes OUT/NAME.txt: step, bits, auxiliary loss and gradient norm in full precision, one line a window.
# Run it for two checkouts and compare the folders: diff -r BEFORE AFTER. SHORT=1 switches off the short convolutions
# of recipes from before their removal. Some 12 minutes on one idle core.
set -eu
CHECKOUT=$1 OUT=$(mkdir -p "$2" && cd "$2" && pwd) SPEECH=$(cd "$3" && pwd) DEMO=$(cd "$4" && pwd) WINDOWS=${5:-200}
PYTHON=${PYTHON:-$(pwd)/.venv/bin/python}
RUNS=$(mktemp -d)
trap 'rm -rf "$RUNS"' EXIT
cd "$CHECKOUT"
export OMP_NUM_THREADS=1

# one NAME PRECISION WINDOWS TOKENS_A_WINDOW RECIPE [OPTION ...]
one() {
    name=$1 precision=$2 max_tokens=$(($3 * $4)) recipe=$5
    shift 5
    "$PYTHON" -m audio_ct train "$recipe" --run-dir "$RUNS/$name" "$@" --set training.precision="$precision" \
        --set training.max_tokens=$max_tokens --set training.log_every_windows=1 --set training.num_threads=1 \
        --set training.sample_every_windows=0 --set tracking.enabled=false \
        --set evaluation.max_validation_tokens=2000 --set evaluation.cold_start_samples=0 > "$OUT/$name.log" 2>&1
    "$PYTHON" - "$RUNS/$name/metrics.jsonl" > "$OUT/$name.txt" <<'EOF'
import json, sys
for line in open(sys.argv[1]):
    values = json.loads(line)
    if values.get("training_bits_per_sample") is not None:
        shown = ("training_bits_per_sample", "attention_reconstruction", "gradient_norm")
        print(values["step"], *(repr(values.get(name)) for name in shown))
EOF
    rm "$OUT/$name.log"
    echo "$name: $(tail -n 1 "$OUT/$name.txt")"
}

LAYERS="--set model.num_layers=2 --set model.d_model=64 --set model.num_heads=4 --set model.d_ff=128"
LAYERS="$LAYERS --set model.segment_length=128 --set model.memory_length=128"
COMPRESSED="--set model.compressed_memory_length=128"
STACK="--set model.num_stacks=1 --set model.layers_per_stack=6 --set model.residual_channels=32"
STACK="$STACK --set model.skip_channels=32"
PAPER="--set training.batch_size=4 --set training.window_length=256 --set optimizer.warmup_steps=20"
PAPER="$PAPER --set corpus.store=$SPEECH"
# shellcheck disable=SC2086
for model in compressive_transformer transformer_xl wavenet; do
    short=
    [ -z "${SHORT:-}" ] || [ $model = wavenet ] || short="--set model.short_convolution_width=0"
    one demo-$model float32 "$WINDOWS" 512 recipes/demo/$model.yaml $short --set corpus.store="$DEMO"
    one small-$model float32 "$WINDOWS" 1024 recipes/small/$model.yaml $short --set corpus.store="$SPEECH"
    one small-$model-bfloat16 bfloat16 8 1024 recipes/small/$model.yaml $short --set corpus.store="$SPEECH"
done
# shellcheck disable=SC2086
{
    one paper-compressive_transformer float32 "$WINDOWS" 1024 recipes/paper/compressive_transformer.yaml $LAYERS \
        $COMPRESSED $PAPER
    one paper-as_coded float32 "$WINDOWS" 1024 recipes/paper/compressive_transformer_as_coded.yaml $LAYERS $COMPRESSED \
        $PAPER
    one paper-transformer_xl float32 "$WINDOWS" 1024 recipes/paper/transformer_xl.yaml $LAYERS $PAPER
    one paper-wavenet float32 "$WINDOWS" 1024 recipes/paper/wavenet.yaml $STACK $PAPER
    one paper-compressive_transformer-bfloat16 bfloat16 8 1024 recipes/paper/compressive_transformer.yaml $LAYERS \
        $COMPRESSED $PAPER
    one paper-wavenet-bfloat16 bfloat16 8 1024 recipes/paper/wavenet.yaml $STACK $PAPER
}
