#!/usr/bin/env bash
# Installs what the tests need, builds them and runs them. The last line is "N passed, N failed".
#   ./test.sh          everything that fits into half an hour on two cores
#   ./test.sh --all    the full matrix: MPI on every number of ranks, oneDNN, all tests under each sanitizer
set -uo pipefail
cd "$(dirname "$0")"
mkdir -p build
all=false
[ "${1:-}" = --all ] && all=true
passed=0 failed=0 skipped=0
stage_start=$SECONDS
stage() { # name, budget in minutes
  printf '\n== %s (budget %s min)\n' "$1" "$2"
  stage_start=$SECONDS
}
took() { printf -- '-- %d s\n' $((SECONDS - stage_start)); }
check() { # name, command...: counts as one test
  local name=$1 log
  shift
  log=$(mktemp)
  if "$@" >"$log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    printf 'FAILED %s\n' "$name"
    tail -30 "$log"
  fi
  rm -f "$log"
}
skip() { skipped=$((skipped + 1)) && echo "skipped: $*"; }
run_ctest() { # build folder; without --all, what is labelled "all" is left out
  local log leave_out=()
  log=$(mktemp)
  $all || leave_out=(-LE all)
  ctest --test-dir "$1" --output-on-failure --no-tests=error -j 2 "${leave_out[@]}" >"$log" 2>&1
  local bad total
  total=$(sed -n 's/.*tests passed, [0-9]* tests\{0,1\} failed out of \([0-9]*\)/\1/p' "$log")
  bad=$(sed -n 's/.*tests passed, \([0-9]*\) tests\{0,1\} failed out of .*/\1/p' "$log")
  if [ -z "$total" ]; then
    failed=$((failed + 1))
    cat "$log"
  else
    passed=$((passed + total - bad))
    failed=$((failed + bad))
    [ "$bad" -gt 0 ] && grep -vE '^ *[0-9]+/[0-9]+ Test .* Passed|^ *Start ' "$log" | tail -80
    echo "$((total - bad)) of $total passed"
  fi
  rm -f "$log"
}
build() { # folder, targets..., with CMake options in $options
  local folder=$1
  shift
  cmake -S . -B "$folder" -G Ninja $options &&
    cmake --build "$folder" ${1:+--target "$@"}
}
finish() {
  printf '\n'
  [ "$skipped" -gt 0 ] && echo "$skipped skipped"
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
  exit
}

stage "packages" 2
cmake/install_packages.sh cmake ninja-build g++ clang libeigen3-dev nlohmann-json3-dev \
  libcli11-dev doctest-dev libpcre2-dev libutf8proc-dev libxxhash-dev zlib1g-dev libopenmpi-dev openmpi-bin ||
  { failed=1; finish; }
$all && { cmake/install_packages.sh libdnnl-dev ocl-icd-opencl-dev || { failed=1; finish; }; }
took

stage "g++, optimised: all tests, examples and the golden data, ranks under MPI" 15
onednn=OFF
$all && onednn=ON
options="-DCMAKE_BUILD_TYPE=Release -DCMAKE_UNITY_BUILD=ON -DDFLASH_WERROR=ON -DDFLASH_MPI=ON -DDFLASH_ONEDNN=$onednn"
if build build/test >build/test.log 2>&1; then
  rm -f build/test.log
  took
  run_ctest build/test
else
  tail -60 build/test.log
  failed=$((failed + 1))
fi
took

stage "installed package" 1
prefix=$PWD/build/prefix
consume() {
  cmake --install build/test --prefix "$prefix" &&
    cmake -S tests/package -B build/consumer -G Ninja -DCMAKE_PREFIX_PATH="$prefix" &&
    cmake --build build/consumer && build/consumer/consumer
}
for options in -DDFLASH_TESTS=ON -DDFLASH_TESTS=OFF; do
  rm -rf build/plain
  check "a fresh folder configures with $options" cmake -S . -B build/plain -G Ninja $options
done
check "a program outside the repository builds against the install tree and runs" consume
took

stage "clang: every header alone and every program, without a warning" 5
clang_source() { # a header or a program
  local include=$1
  [ -e "$1" ] && include=$PWD/$1
  echo "#include \"$include\"" | clang++ -std=c++20 -fsyntax-only -Wall -Wextra -Wpedantic -Werror -Iinclude \
    -Iexamples -Iexamples/device/cpu -Iexamples/launch/threads -isystem /usr/include/eigen3 \
    $(mpicxx --showme:compile) -DOMPI_SKIP_MPICXX -x c++ -
}
export -f clang_source
while IFS= read -r header; do echo "$header"; done < <(cd include && find dflash -name '*.hpp' ! -path 'dflash/cuda/*' ! -path 'dflash/nccl*' ! -name onednn.hpp | sort) >build/sources.txt
ls examples/*.cpp >>build/sources.txt
if xargs -P 2 -I{} bash -c 'clang_source {} || { echo "FAILED {}"; exit 1; }' <build/sources.txt >build/clang.log 2>&1; then
  passed=$((passed + $(wc -l <build/sources.txt)))
else
  bad=$(grep -c '^FAILED' build/clang.log)
  failed=$((failed + bad))
  passed=$((passed + $(wc -l <build/sources.txt) - bad))
  grep -E 'error|FAILED' build/clang.log | head -40
fi
took

stage "nvcc: every CUDA header alone, and every kernel, without a warning" 4
if command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ]; then
  architectures=90a
  $all && architectures="90a 80 100"
  # shellcheck disable=SC2086
  tests/cuda/nvcc.sh $architectures >build/nvcc.log 2>&1
  nvcc_tally=$(tail -1 build/nvcc.log)
  passed=$((passed + ${nvcc_tally%% *}))
  nvcc_failed=${nvcc_tally##*, }
  failed=$((failed + ${nvcc_failed%% *}))
  [ "${nvcc_failed%% *}" -gt 0 ] && tail -60 build/nvcc.log
  gpu_programs() {
    local nccl=OFF
    [ -e "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")/../include/nccl.h" ] && nccl=ON
    cmake --preset cuda -B build/cuda -DDFLASH_NCCL=$nccl -DDFLASH_MPI=ON -DDFLASH_BENCHMARKS=ON &&
      cmake --build build/cuda
  }
  $all && check "programs, tests and benchmarks for GPUs build" gpu_programs
else
  skip "CUDA headers by nvcc: there is none (the kernels ran on the emulated device)"
fi
took

run_sanitized() { # executable, log
  "$1" >"$2" 2>&1 || { echo "FAILED $1"; tail -30 "$2"; }
}
export -f run_sanitized
sanitized() { # preset, groups of tests: all without any
  local folder=build/$1 test tests bad count
  local log=$folder/sanitize.log
  shift
  cmake --preset "${folder#build/}" -B "$folder" -DDFLASH_EXAMPLES=OFF -DCMAKE_UNITY_BUILD=ON >build/sanitize.log 2>&1
  tests=$(printf '%s_tests\n' "$@")
  [ $# -gt 0 ] || tests=$(cmake --build "$folder" --target help | sed -n 's/^\([a-z_]*_tests\): phony/\1/p')
  # shellcheck disable=SC2086
  if ! cmake --build "$folder" --target $tests >"$log" 2>&1; then
    tail -40 "$log"
    failed=$((failed + 1))
    return
  fi
  echo "$tests" | xargs -P 2 -I{} bash -c "run_sanitized $folder/tests/{} $folder/{}.log" | tee "$log"
  bad=$(grep -c '^FAILED' "$log")
  failed=$((failed + bad))
  for test in $tests; do
    count=$(sed -n 's/.*test cases: .*| *\([0-9]*\) passed.*/\1/p' "$folder/$test.log")
    passed=$((passed + ${count:-0}))
  done
}

readers="cuda_kernels cuda io text data import parallel_stages"  # the longest first
$all && readers=""
stage "address and undefined-behaviour sanitizers: readers of files, kernels, the parallel path" 5
# shellcheck disable=SC2086
sanitized sanitize $readers
took

threads="cuda cuda_ranks core comm parallel_stages"
$all && threads=""
stage "thread sanitizer: threads, ranks and kernels" 3
# shellcheck disable=SC2086
sanitized sanitize-thread $threads
took

$all || skip "MPI on the other numbers of ranks: ./test.sh --all runs them"
finish
