#!/usr/bin/env bash
# Installs what is missing, builds Sinter in build/ and runs its tests (Debian 12, Ubuntu
# 24.04). Arguments go to ctest: tests/run.sh -R conv2d. In the environment:
#   SINTER_CMAKE_ARGS    further CMake arguments, separated by spaces
#   SINTER_BUILD_DIR     the build folder, if not build
#   SINTER_REQUIRE_CUDA  set: a CUDA test that cannot run fails instead of being skipped
set -euo pipefail
# shellcheck source=apps/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/../apps/setup.sh"

build=${SINTER_BUILD_DIR:-$sinter_root/build}
read -ra cmake_args <<<"${SINTER_CMAKE_ARGS:-}"

install_missing "${build_packages[@]}" catch2 || note "going on with what is here"
cuda_arguments
configure_and_build "$build" "${cuda_args[@]}" \
  -DSINTER_BUILD_APPS=ON -DSINTER_BUILD_TESTS=ON "${cmake_args[@]}"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
ctest --test-dir "$build" --output-on-failure --no-tests=error "$@" 2>&1 | tee "$log" || status=$?

# ctest's summary names the skipped tests and counts only the others.
skipped=$(grep -c '\*\*\*Skipped' "$log" || true)
if [ "$skipped" -gt 0 ]; then
  passed=$(grep -cE '^ *[0-9]+/[0-9]+ Test .* Passed ' "$log" || true)
  failed=$(sed -n 's/.*tests passed, \([0-9]*\) tests* failed out of.*/\1/p' "$log")
  printf '\nNo usable CUDA device: the tests above marked (Skipped) did not run.\n'
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
fi
exit "$status"
