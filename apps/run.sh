#!/usr/bin/env bash
# Builds Sinter in build/ and runs its benchmark: ten epochs of the CIFAR-10 network on every device
# of this machine. Installs what is missing first (Debian 12, Ubuntu 24.04). Arguments go to
# `sinter bench`: apps/run.sh --epochs 1 --devices cpu
set -euo pipefail
# shellcheck source=apps/setup.sh
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# What is optional may stay missing (no network); CMake names what it cannot do without.
install_missing "${build_packages[@]}" || note "going on with what is here"
cuda_arguments
configure_and_build "$sinter_root/build" "${cuda_args[@]}" \
  -DSINTER_BUILD_APPS=ON -DSINTER_BUILD_TESTS=OFF
exec "$sinter_root/build/apps/sinter" bench "$@"
