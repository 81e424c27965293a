# What apps/run.sh, tests/run.sh and tests/fuzz/run.sh share: packages, configuring, building. Sourced, not run:
#
#   . apps/setup.sh
#   install_missing "${build_packages[@]}" catch2
#   cuda_arguments                                  # fills the array cuda_args
#   configure_and_build build "${cuda_args[@]}" -DSINTER_BUILD_TESTS=OFF
#
# Works on Debian 12, Ubuntu 24.04 and later. Quiet when all goes well; what fails is printed.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the arrays are for the scripts that source this one

sinter_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# What building the library and the command takes.
build_packages=(git ca-certificates cmake g++ ninja-build nlohmann-json3-dev libcli11-dev
  libopenblas-dev libeigen3-dev libhwy-dev libcurl4-openssl-dev libssl-dev libarchive-dev)

note() { printf 'sinter: %s\n' "$*" >&2; }

# quietly COMMAND...: runs it, printing what it said only if it fails.
quietly() {
  local log status=0
  log=$(mktemp)
  "$@" >"$log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then
    cat "$log" >&2
    note "failed ($status): $*"
  fi
  rm -f "$log"
  return "$status"
}

# Tools count wherever they come from; libraries are looked up as packages.
is_installed() {
  case $1 in
    git | cmake | g++ | clang) command -v "$1" >/dev/null 2>&1 && return ;;
    ninja-build) command -v ninja >/dev/null 2>&1 && return ;;
  esac
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# install_missing PACKAGE...: installs those that are not there. Asks apt nothing when none is
# missing, so that a machine without a network works once its packages are in place.
install_missing() {
  local package missing=() as_root=()
  if ! command -v dpkg-query >/dev/null 2>&1; then
    note "no dpkg here: install the equivalents of these yourself if they are missing: $*"
    return 0
  fi
  for package in "$@"; do
    is_installed "$package" || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return 0

  if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
      note "missing packages, and neither root nor sudo to install them; as root, run:"
      note "  apt-get install ${missing[*]}"
      return 1
    fi
    as_root=(sudo)
  fi
  note "installing ${missing[*]}"
  # env: sudo drops the variable otherwise. The time-outs keep a machine without a network from
  # waiting for minutes.
  local apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y
    -o Acquire::Retries=2 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)
  # A failed update may leave lists good enough to install from: the install decides.
  "${apt[@]}" update >/dev/null 2>&1 || note "apt-get update failed; trying with the lists at hand"
  quietly "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

# Sets cuda_args to the options that suit this machine: the architectures of the GPUs present, which
# keeps the build short; CPU only without a GPU, because a command that runs here could not use more.
cuda_arguments() {
  local caps='' nvcc
  cuda_args=(-DSINTER_CUDA=OFF)
  if command -v nvidia-smi >/dev/null 2>&1; then
    caps=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null |
      sed -n 's/^ *\([0-9]*\)\.\([0-9]\) *$/\1\2/p' | sort -u | paste -sd ';' -) || caps=''
  fi
  [ -n "$caps" ] || return 0
  for nvcc in nvcc "${CUDACXX:-}" "${CUDA_HOME:-}/bin/nvcc" "${CUDA_PATH:-}/bin/nvcc" \
    /usr/local/cuda/bin/nvcc; do
    if [ -n "$nvcc" ] && command -v "$nvcc" >/dev/null 2>&1; then
      cuda_args=(-DSINTER_CUDA=ON "-DSINTER_CUDA_ARCHITECTURES=$caps")
      return 0
    fi
  done
  note "a GPU, but no CUDA toolkit (nvcc): building for the CPU only"
}

# configure_and_build DIR [CMAKE ARGUMENT...]: a Release build of this source tree in DIR, resumed
# if one is there.
configure_and_build() {
  local dir=$1 generator=()
  shift
  if [ ! -f "$dir/CMakeCache.txt" ]; then
    note "building in $dir; the first time takes a few minutes"
    # A folder configured before keeps its generator.
    command -v ninja >/dev/null 2>&1 && generator=(-G Ninja)
  fi
  quietly cmake -S "$sinter_root" -B "$dir" "${generator[@]}" -DCMAKE_BUILD_TYPE=Release "$@" &&
    quietly cmake --build "$dir" --parallel "$(nproc)"
}
