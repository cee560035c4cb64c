#!/usr/bin/env bash
# The main job on the embedded tiny target, in minutes: captures its hidden states, trains a DFlash
# draft from them, and measures how many tokens a draft-verify cycle yields before and after.
#   ./quickstart.sh [FOLDER]      where the store and the checkpoints go (default: build/quickstart)
set -euo pipefail
cd "$(dirname "$0")"
data=examples/data/tiny-target
out=${1:-build/quickstart}
steps=${DFLASH_QUICKSTART_STEPS:-1000}
start=$SECONDS
say() { printf '\n[%3d s] %s\n' $((SECONDS - start)) "$*"; }

say "1/5 packages"
cmake/install_packages.sh cmake ninja-build g++ libeigen3-dev nlohmann-json3-dev libcli11-dev \
  libpcre2-dev libutf8proc-dev libxxhash-dev zlib1g-dev

mkdir -p build
say "2/5 building the programs (their arithmetic optimised)"
cmake -S . -B build/programs -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DDFLASH_TESTS=OFF >build/quickstart.log 2>&1 ||
  { cat build/quickstart.log; exit 1; }
cmake --build build/programs --target prepare_hidden_states train_offline evaluate >>build/quickstart.log 2>&1 ||
  { tail -40 build/quickstart.log; exit 1; }
rm -f build/quickstart.log
programs=build/programs/examples

rm -rf "$out"
mkdir -p "$out"
say "3/5 capturing the target's hidden states"
"$programs/prepare_hidden_states" --target-model-path $data --model-type dflash \
  --draft-config-path $data/draft-config.json --data-path $data/prompts-train.jsonl \
  --max-length 256 --sample-filter adjacent-pair --dtype f32 --output-path "$out/store"

evaluate() {
  "$programs/evaluate" --target-model-path $data --draft-model-path "$1" \
    --data-path $data/prompts-eval.jsonl --max-new-tokens 128 "${@:2}"
}

say "4/5 training the draft, $steps steps"
"$programs/train_offline" --target-model-path $data --draft-config-path $data/draft-config.json \
  --train-hidden-states-path "$out/store" --output-dir "$out/draft" --batch-size 4 \
  --num-anchors 64 --loss-decay-gamma 4 --learning-rate 6e-4 --warmup-ratio 0.04 \
  --max-steps "$steps" --save-initial --save-interval 0

say "5/5 speculative decoding of prompts the draft has not seen"
before=$(evaluate "$out/draft/step-000000" --limit 20 --json |
  sed 's/.*"acceptance_length":\([0-9.]*\).*/\1/')
evaluate "$out/draft/$(cat "$out/draft/latest")" --show "What is a transcript?"
printf '\nAcceptance length before training: %.3f\n' "$before"
echo "The trained draft lies in $out/draft/$(cat "$out/draft/latest")"
say "done"
