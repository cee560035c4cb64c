#!/usr/bin/env bash
# Compiles every CUDA header alone, the CPU's backend as sources of nvcc may use it beside the GPU's,
# and every kernel, without a warning.
#   tests/cuda/nvcc.sh 90a [80 100 ...]      architectures
#   tests/cuda/nvcc.sh --kernels 90a         only the kernels, and prints what each needs
# The last line is "N compiled, N failed".
set -uo pipefail
cd "$(dirname "$0")/../.."
kernels_only=false
[ "${1:-}" = --kernels ] && kernels_only=true && shift
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() { # architecture, source, further options
  local arch=$1 source=$2
  shift 2
  # The CPU's headers have pragmas that are none of nvcc's (1675).
  "$nvcc" -std=c++20 -Iinclude -isystem /usr/include/eigen3 -diag-suppress=1675 -Werror all-warnings -Xcompiler=-Wall,-Wextra,-Werror \
    -gencode="arch=compute_$arch,code=sm_$arch" "$@" -c "$source" -o "$source.$arch.o"
}
alone() { # header, architecture
  local source
  source=$work/$(echo "$1" | tr '/.' '__').cu
  echo "#include \"$1\"" >"$source"
  compile "$2" "$source" -O0 >"$source.log" 2>&1 || { echo "FAILED $1 for sm_$2"; cat "$source.log"; return 1; }
}
table() { # compiler's log: one line per kernel
  c++filt <"$1" | sed -n "s/^ptxas info *: Compiling entry function '\(.*\)' for.*/kernel \1/p
    s/^ *\([0-9]*\) bytes stack frame, \([0-9]*\) bytes spill stores, \([0-9]*\) bytes spill loads/frame \1 \2 \3/p
    s/^ptxas info *: Used \([0-9]*\) registers.*/registers \1/p" |
    awk '/^kernel/ {name = substr($0, 8); sub(/^void /, "", name); sub(/\(.*/, "", name); gsub(/dflash::|cuda::|detail::/, "", name)}
      /^frame/ {stack = $2; spills = $3 + $4}
      /^registers/ {printf "%9d %6d %7d  %s\n", $2, stack, spills, name}' | sort -k4 |
    { printf 'registers  stack  spills  kernel\n'; cat; }
}
shared_memory() { # architecture: what launches of attention ask for
  "$nvcc" -std=c++20 -Iinclude -gencode="arch=compute_$1,code=sm_$1" tests/cuda/shared_memory.cu \
    -o "$work/shared_memory" -lcublasLt -lcuda && "$work/shared_memory"
}
export -f compile alone
export nvcc work
compiled=0 failed=0
for arch in "$@"; do
  cp tests/cuda/kernels.cu "$work/kernels.cu"
  compile "$arch" "$work/kernels.cu" -O3 -Xptxas -v >"$work/log" 2>&1 &
  kernels=$!  # the longest of all: beside the headers
  if ! $kernels_only; then
    headers=dflash/cpu.hpp$'\n'$(cd include && find dflash -path '*cuda*' \( -name '*.cuh' -o -path 'dflash/cuda/*.hpp' \) | sort)
    [ -e "$(dirname "$nvcc")/../include/nccl.h" ] &&
      headers+=$'\n'$(cd include && find dflash -path 'dflash/nccl*' -name '*.hpp' | sort)
    bad=$(echo "$headers" | xargs -P "$(nproc)" -I{} bash -c "alone {} $arch" | tee /dev/stderr | grep -c '^FAILED')
    compiled=$((compiled + $(echo "$headers" | wc -l) - bad)) failed=$((failed + bad))
  fi
  if wait $kernels; then
    compiled=$((compiled + 1))
    $kernels_only && table "$work/log" && shared_memory "$arch"
  else
    failed=$((failed + 1))
    grep -v '^ptxas info\|bytes stack frame' "$work/log"
  fi
done
echo "$compiled compiled, $failed failed"
[ "$failed" -eq 0 ] && [ "$compiled" -gt 0 ]
