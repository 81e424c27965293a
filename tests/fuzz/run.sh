#!/usr/bin/env bash
# Fuzzes the file parsers for SECONDS each (60), at the same time, setting out from the corpus:
#   tests/fuzz/run.sh [SECONDS [TARGET...]]     TARGET: cifar, checkpoint, safetensors
# Installs what is missing. Fails on a finding and says where its input lies; copied to
# corpus/TARGET/found-..., that input becomes a test. What is learnt stays in the build folder for
# the next run. In the environment:
#   SINTER_CMAKE_ARGS  further CMake arguments, separated by spaces
#   SINTER_BUILD_DIR   the build folder, if not build-fuzz
set -euo pipefail
# shellcheck source=apps/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../apps/setup.sh"

seconds=${1:-60}
targets=("${@:2}")
[ "${#targets[@]}" -gt 0 ] || targets=(cifar checkpoint safetensors)
build=${SINTER_BUILD_DIR:-$sinter_root/build-fuzz}
corpus=$sinter_root/tests/fuzz/corpus
read -ra cmake_args <<<"${SINTER_CMAKE_ARGS:-}"

# llvm: with its symbolizer, findings come with lines.
install_missing "${build_packages[@]}" clang libclang-rt-dev llvm || note "going on with what is here"
configure_and_build "$build" --preset fuzz -DCMAKE_BUILD_TYPE=RelWithDebInfo "${cmake_args[@]}"

# fuzz TARGET: with its seeds and what earlier runs learnt. Inputs stay small, where all the format's
# turns can be taken, and quick to try.
fuzz() {
  local target=$1 longest=4096 learnt=$build/learnt/$1
  local arguments=(-dict="$sinter_root/tests/fuzz/json.dict")
  [ "$target" = cifar ] && longest=12292 arguments=() # four records
  mkdir -p "$learnt"
  "$build/tests/fuzz/${target}_fuzz" -max_total_time="$seconds" -max_len="$longest" -timeout=10 \
    -rss_limit_mb=2048 -malloc_limit_mb=16 -artifact_prefix="$build/found-$target-" \
    -print_final_stats=1 "${arguments[@]}" "$learnt" "$corpus/$target" >"$build/$target.log" 2>&1
}

running=()
for target in "${targets[@]}"; do
  fuzz "$target" &
  running+=($!)
done
findings=0
for i in "${!targets[@]}"; do
  log=$build/${targets[i]}.log
  if wait "${running[i]}"; then
    printf '%-12s no finding in %s inputs, %s s\n' "${targets[i]}" \
      "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" "$seconds"
  else
    findings=$((findings + 1))
    printf '\n%s: FINDING (%s)\n' "${targets[i]}" "$log"
    grep -avE '^#[0-9]+\s|^stat::' "$log" | tail -n 60
  fi
done
[ "$findings" -eq 0 ]
