#!/usr/bin/env bash
# Checks and times Weir on a machine with an NVIDIA GPU, from a build folder, from a folder that
# tools/pack_gpu_check.sh made, or from a dist folder (which has no tests).
#
# Usage: tools/gpu_check.sh [--folder FOLDER] [--out FOLDER] [--shapes FOLDER] [--jobs N] [--device cuda|cpu] [PART ...]
#   tests     kernel tests, each of which must find the GPU
#   check     weir check: all of tests/golden and models/weir-tiny, f32 and bf16
#   kernels   weir bench kernels
#   step      weir bench step, both shapes
#   hybrid    hybrid beside full attention in every layer, as many sequences as fit
#   start     process start to first token: weir-tiny, and the 9B shape with random weights
#   serve     weir serve with the 9B shape, weir bench serve with 64 and 256 clients
#   sanitize  compute-sanitizer memcheck and racecheck on the kernel tests (only when named)
# Without parts: all but sanitize. A row for each thing, also in summary.tsv beside the outputs, which stay in
# --out. Exit 1 when anything failed.
# Shapes are config.json files of published models, qwen3_5_9b.json and qwen3_5_0_8b.json; parts that need one
# are skipped where it is not found. --device cpu is for trying the script itself.
set -uo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
folder="" out="" shapes="" jobs=12 device=cuda parts=()
while [ $# -gt 0 ]; do
  case $1 in
    --folder) folder=$2; shift 2 ;;
    --out) out=$2; shift 2 ;;
    --shapes) shapes=$2; shift 2 ;;
    --jobs) jobs=$2; shift 2 ;;
    --device) device=$2; shift 2 ;;
    tests|check|kernels|step|hybrid|start|serve|sanitize) parts+=("$1"); shift ;;
    *) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(tests check kernels step hybrid start serve)

out=${out:-$(mktemp -d)}
mkdir -p "$out"
work=$(mktemp -d)
server=""
cleanup() {
  [ -z "$server" ] || kill -9 "$server" 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT

# --- What there is -------------------------------------------------------------------------------------------

if [ -z "$folder" ]; then
  for candidate in "$root/build" "$root"/dist/weir-*; do
    [ -x "$candidate/weir" ] || [ -x "$candidate/bin/weir" ] && { folder=$candidate; break; }
  done
fi
[ -n "$folder" ] || { echo "nothing to check: build first, or name a --folder" >&2; exit 2; }
if [ -f "$folder/files.tar.xz" ]; then
  tar -C "$work" -xJf "$folder/files.tar.xz"
  [ -z "$shapes" ] && [ -d "$folder/shapes" ] && shapes=$folder/shapes
  folder=$work
fi
weir=$folder/weir
[ -x "$weir" ] || weir=$folder/bin/weir
[ -x "$weir" ] || { echo "$folder has no weir" >&2; exit 2; }
[ -n "$shapes" ] || shapes=${WEIR_SHARED_DIR:-$root/../shared}/shapes
shape_9b=$shapes/qwen3_5_9b.json
shape_small=$shapes/qwen3_5_0_8b.json
tiny=$root/models/weir-tiny
[ -d "$tiny" ] || tiny=$folder/models/weir-tiny

# Libraries that travel beside the binary, and cuBLASLt where the machine has it elsewhere.
paths=$folder/lib
if ! ls "$folder"/lib/libcublasLt.so.* >/dev/null 2>&1; then
  for candidate in /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
      $(python3 -c 'import nvidia; [print(p + "/cu13/lib", p + "/cublas/lib") for p in nvidia.__path__]' 2>/dev/null); do
    ls "$candidate"/libcublasLt.so.1* >/dev/null 2>&1 && { paths=$paths:$candidate; break; }
  done
fi
export LD_LIBRARY_PATH=$paths${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}

# --- Results -------------------------------------------------------------------------------------------------

failed=0
row() {  # part, item, result, figures
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$out/summary.tsv"
  printf '%-9s %-28s %-8s %s\n' "$1" "$2" "$3" "$4"
  [ "$3" != FAILED ] || failed=1
}
: > "$out/summary.tsv"

number() {  # KEY: the number of that key in a JSON line on stdin; KEY.SUB: one level down
  case $1 in
    *.*) sed -nE "s/.*\"${1%.*}\":\{[^}]*\"${1#*.}\":([-0-9.eE+]+).*/\1/p" ;;
    *) sed -nE "s/.*\"$1\":([-0-9.eE+]+).*/\1/p" ;;
  esac | head -n 1
}
# The same to four digits.
brief() { number "$1" | awk '{ printf "%.4g", $1 }'; }
word() { sed -nE "s/.*\"$1\":\"([^\"]*)\".*/\1/p" | head -n 1; }
now_ms() { echo $(($(date +%s%N) / 1000000)); }
# What a failed command said last, on one line.
last_words() { tail -n 2 "$1" 2>/dev/null | tr '\n\t' '  ' | cut -c1-200; }

# Runs "$@" with its output in $out/NAME and a time limit; row on failure.
capture() {  # part, item, name, seconds, command...
  local part=$1 item=$2 name=$3 limit=$4
  shift 4
  if timeout -k 5 "$limit" "$@" > "$out/$name" 2> "$out/$name.err"; then return 0; fi
  local code=$?
  [ "$code" -eq 124 ] && echo "took more than $limit s" >> "$out/$name.err"
  row "$part" "$item" FAILED "$(last_words "$out/$name.err") $(last_words "$out/$name")"
  return 1
}

need() {  # part, file: false, with a row, when the file is not there
  [ -e "$2" ] && return 0
  row "$1" - skipped "$2 is not here"
  return 1
}

# --- Parts ---------------------------------------------------------------------------------------------------

tests_in() { grep -oE '[0-9]+ tests? from [0-9]+ test suites? ran' "$1" | tail -n 1; }
one_test() {  # runs in a subshell of xargs: log and exit code into $out
  local name
  name=$(basename "$1")
  local begin=$(now_ms)
  WEIR_REQUIRE_GPU=1 timeout -k 5 80 "$1" --gtest_brief=1 > "$out/test-$name.log" 2>&1
  echo "$name $? $(($(now_ms) - begin))"
}
export -f one_test now_ms tests_in
export out

part_tests() {
  local tests
  tests=$(ls "$folder"/tests/kernels_* "$folder"/tests/core_*cuda* 2>/dev/null)
  [ -n "$tests" ] || { row tests - skipped "$folder has no tests"; return; }
  local name code ms
  while read -r name code ms; do
    if [ "$code" -eq 0 ]; then
      row tests "$name" ok "$(tests_in "$out/test-$name.log"), $ms ms"
    else
      row tests "$name" FAILED "exit $code; $(grep -E 'FAILED  \]|Failure' "$out/test-$name.log" | head -n 3 | tr '\n' ' ' | cut -c1-200)"
    fi
  done < <(echo "$tests" | xargs -P "$jobs" -I{} bash -c 'one_test "$1"' - {})
}

# NAME ERROR of every JSON line of weir check: the worst over its paths, and "ok" or "off".
worst_errors() {
  grep '"model"' "$1" | while read -r line; do
    echo "$(echo "$line" | word model) $(echo "$line" | grep -oE '"relative_error":[-0-9.eE+]+' | cut -d: -f2 | sort -g | tail -n 1) \
$(case $line in *'"ok":false'*) echo off ;; *) echo ok ;; esac)"
  done
}

# Checkpoints in float32 lose more than the tolerance of bf16 when their weights are rounded, on any device: those
# are held to twice what bf16 gives on the CPU.
part_check() {
  [ -d "$root/tests/golden" ] || { row check goldens skipped "no tests/golden here"; return; }
  local begin dtype what
  "$weir" check "$root/tests/golden" --device cpu --dtype bf16 --json > "$out/check-cpu.jsonl" 2>/dev/null &
  local reference=$!
  for dtype in f32 bf16; do
    begin=$(now_ms)
    : > "$out/check-$dtype.jsonl"
    for what in "$root/tests/golden" "$tiny"; do
      timeout -k 5 60 "$weir" check "$what" --device "$device" --dtype "$dtype" --json >> "$out/check-$dtype.jsonl" 2>> "$out/check-$dtype.err"
    done
    [ "$dtype" = f32 ] || wait "$reference"
    worst_errors "$out/check-$dtype.jsonl" > "$work/errors"
    worst_errors "$out/check-cpu.jsonl" > "$work/cpu"
    local good worst rounded bad expected count
    expected=$(($(ls -d "$root"/tests/golden/*/config.json | wc -l) + 1))
    count=$(wc -l < "$work/errors")
    good=$(awk '$3 == "ok"' "$work/errors" | wc -l)
    worst=$(awk '$3 == "ok" { print $2 }' "$work/errors" | sort -g | tail -n 1 | awk '{ printf "%.2e", $1 }')
    [ "$dtype" = bf16 ] || : > "$work/cpu"
    rounded=$(awk 'FILENAME == ARGV[1] { cpu[$1] = $2; next } $3 == "off" && ($1 in cpu) && $2 <= 2 * cpu[$1]' "$work/cpu" "$work/errors" | wc -l)
    bad=$(awk 'FILENAME == ARGV[1] { cpu[$1] = $2; next } $3 == "off" && !(($1 in cpu) && $2 <= 2 * cpu[$1]) { printf "%s (%.2e) ", $1, $2 }' \
      "$work/cpu" "$work/errors")
    [ "$count" -eq "$expected" ] || bad="$bad$((expected - count)) models without an answer: $(last_words "$out/check-$dtype.err")"
    row check "$dtype" "$([ -z "$bad" ] && echo ok || echo FAILED)" \
      "$good models, worst relative error ${worst:-none}$([ "$rounded" -eq 0 ] || echo ", $rounded more within twice the CPU's bf16")${bad:+, failed: $bad}, $(($(now_ms) - begin)) ms"
  done
}

part_kernels() {
  capture kernels - kernels.jsonl 90 "$weir" bench kernels --device "$device" --seconds 0.05 || return
  local line name
  while read -r line; do
    name=$(echo "$line" | sed -E 's/^\{//; s/,"(device|skipped)".*//; s/"(op|variant)":"([^"]*)"/\2/g; s/"([a-z_]+)":/\1=/g; s/,/ /g')
    case $line in
      *'"skipped"'*) row kernels "$name" skipped "$(echo "$line" | word skipped)" ;;
      *'"op"'*) row kernels "$name" ok "$(echo "$line" | brief us) us, $(echo "$line" | sed 's/percent_of_read_rate/percent_of_copy_rate/' | brief percent_of_copy_rate) % of the copy rate, $(echo "$line" | brief percent_of_matrix_rate) % of the matrix rate" ;;
    esac
  done < "$out/kernels.jsonl"
}

step_rows() {  # name of the shape, file of JSON lines
  local line phase
  while read -r line; do
    phase=$(echo "$line" | word phase)
    case $phase in
      decode) row step "$1 decode" ok "batch $(echo "$line" | number batch), context $(echo "$line" | number context_tokens): $(echo "$line" | brief tokens_per_second) tokens/s, $(echo "$line" | brief step_ms) ms" ;;
      prefill) row step "$1 prefill" ok "$(echo "$line" | number tokens) tokens: $(echo "$line" | brief tokens_per_second) tokens/s" ;;
    esac
  done < "$2"
}

part_step() {
  local shape name
  for shape in "$shape_9b" "$shape_small"; do
    need step "$shape" || continue
    name=$(basename "$shape" .json)
    local run=("$weir" bench step --shape "$shape" --device "$device" --dtype bf16 --seconds 0.5)
    capture step "$name" "step-$name.jsonl" 60 "${run[@]}" --batch 1,16,64,256 --context 512 && step_rows "$name" "$out/step-$name.jsonl"
    capture step "$name" "step-$name-4k.jsonl" 40 "${run[@]}" --batch 64 --context 4096 && step_rows "$name" "$out/step-$name-4k.jsonl"
    capture step "$name" "step-$name-16k.jsonl" 40 "${run[@]}" --batch 1 --context 16384 && step_rows "$name" "$out/step-$name-16k.jsonl"
  done
}

part_hybrid() {
  need hybrid "$shape_9b" || return
  local context flags kind
  for context in 4096 16384 65536 131072; do
    for flags in "" --full-attention; do
      kind=$([ -z "$flags" ] && echo hybrid || echo full-attention)
      capture hybrid "$kind $context" "hybrid-$kind-$context.jsonl" 60 "$weir" bench step --shape "$shape_9b" \
        --device "$device" --dtype bf16 --seconds 0.5 --fill --context "$context" $flags || continue
      local line
      line=$(grep '"phase":"decode"' "$out/hybrid-$kind-$context.jsonl" | tail -n 1)
      row hybrid "$kind $context" ok "batch $(echo "$line" | number batch): $(echo "$line" | brief tokens_per_second) tokens/s"
    done
  done
}

# Starts a server and waits for its ready file; $server, $address. False, with a row, when it ends before.
start_server() {  # part, limit in seconds, flags...
  local part=$1 limit=$2
  shift 2
  rm -f "$work/ready"
  "$weir" serve "$@" --device "$device" --grpc 127.0.0.1:0 --metrics "" --ready-file "$work/ready" > "$out/$part-server.log" 2>&1 &
  server=$!
  local end=$(($(now_ms) + limit * 1000))
  while [ ! -s "$work/ready" ]; do
    if ! kill -0 "$server" 2>/dev/null || [ "$(now_ms)" -gt "$end" ]; then
      row "$part" server FAILED "$(last_words "$out/$part-server.log")"
      stop_server
      return 1
    fi
    sleep 0.005
  done
  address=$(word grpc < "$work/ready")
}
stop_server() {
  [ -n "$server" ] || return 0
  kill "$server" 2>/dev/null
  wait "$server" 2>/dev/null
  server=""
}

start_row() {  # item, limit, flags of the server...
  local item=$1 limit=$2
  shift 2
  local begin=$(now_ms)
  start_server start "$limit" "$@" || return
  local ready=$(($(now_ms) - begin))
  capture start "$item" "start-$item.jsonl" 30 "$weir" bench serve --address "$address" --clients 1 --requests 1 \
    --prompt-tokens 16 --output-tokens 2 &&
    row start "$item" ok "ready after $ready ms, first token $(number first_token_ms.p50 < "$out/start-$item.jsonl") ms later"
  stop_server
}

part_start() {
  local begin=$(now_ms)
  capture start "generate weir-tiny" start-generate.txt 30 "$weir" generate "$tiny" --prompt "Once upon a time" --max-tokens 1 &&
    row start "generate weir-tiny" ok "$(($(now_ms) - begin)) ms from process start to its end, one token"
  start_row serve-weir-tiny 30 "$tiny"
  need start "$shape_9b" || return
  start_row serve-9b 60 "$shape_9b" --random-weights true --dtype bf16
}

serve_row() {  # item, file
  local line
  line=$(tail -n 1 "$2")
  row serve "$1" ok "$(echo "$line" | brief output_tokens_per_second) output tokens/s, first token p50 $(echo "$line" | brief first_token_ms.p50) ms, inter-token p50 $(echo "$line" | brief inter_token_ms.p50) p99 $(echo "$line" | brief inter_token_ms.p99) ms"
}

part_serve() {
  need serve "$shape_9b" || return
  start_server serve 60 "$shape_9b" --random-weights true --dtype bf16 --slots 256 --step-sequences 256 || return
  local clients
  for clients in 64 256; do
    # One short round first: plans and graphs of every size are then made.
    capture serve "warm-up $clients" "serve-warm-$clients.jsonl" 30 "$weir" bench serve --address "$address" \
      --clients "$clients" --requests "$clients" --prompt-tokens 128 --output-tokens 16 || break
    capture serve "$clients clients" "serve-$clients.jsonl" 80 "$weir" bench serve --address "$address" \
      --clients "$clients" --requests $((clients * 4)) --prompt-tokens 128 --output-tokens 256 &&
      serve_row "$clients clients" "$out/serve-$clients.jsonl"
  done
  stop_server
}

part_sanitize() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
  [ -n "$sanitizer" ] || { row sanitize - skipped "compute-sanitizer is not installed"; return; }
  # The GPU's cases alone, since those of the CPU find nothing here and take long; each test in three parts.
  local test tool shard
  for tool in memcheck racecheck; do
    for test in "$folder"/tests/kernels_*; do
      [ -x "$test" ] || { row sanitize - skipped "$folder has no tests"; return; }
      for shard in 0 1 2; do echo "$tool $test $shard"; done
    done
  done > "$work/to-sanitize"
  xargs -P "$jobs" -L 1 bash -c '
    log=$out/sanitize-$1-$(basename "$2")-$3.log
    WEIR_REQUIRE_GPU=1 GTEST_TOTAL_SHARDS=3 GTEST_SHARD_INDEX=$3 timeout -k 5 85 "$0" --tool "$1" --error-exitcode 99 \
      --target-processes application-only "$2" --gtest_brief=1 \
      "--gtest_filter=*gpu*:*Gpu*:*Cuda*:*LinearMixerCase*" > "$log" 2>&1
    code=$?
    echo "$1 $(basename "$2") $code $(tests_in "$log" | cut -d" " -f1) $log"' "$sanitizer" < "$work/to-sanitize" |
    sort > "$work/sanitized"
  local name code count log
  for tool in memcheck racecheck; do
    for name in $(awk -v t="$tool" '$1 == t { print $2 }' "$work/sanitized" | uniq); do
      # The part that went worst stands for the test.
      read -r code log < <(awk -v t="$tool" -v n="$name" '$1 == t && $2 == n { print $3, $NF }' "$work/sanitized" | sort -rn)
      count=$(awk -v t="$tool" -v n="$name" '$1 == t && $2 == n && NF == 5 { c += $4 } END { print c + 0 }' "$work/sanitized")
      case $code in
        0) row sanitize "$tool $name" "$([ "$count" -gt 0 ] && echo ok || echo skipped)" "$count cases of the GPU" ;;
        124|137) row sanitize "$tool $name" FAILED "not done after 85 s" ;;
        *) row sanitize "$tool $name" FAILED "exit $code; $(grep -E '=========' "$log" | sed -n '2,3p' | tr '\n' ' ' | cut -c1-200) $log" ;;
      esac
    done
  done
}

nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm --format=csv,noheader 2>/dev/null ||
  echo "nvidia-smi finds no GPU"
"$weir" --version
for part in "${parts[@]}"; do
  begin=$(now_ms)
  "part_$part"
  echo "$part: $(($(now_ms) - begin)) ms" >&2
done
if [ "$failed" -eq 0 ]; then
  echo "all ok; outputs in $out"
else
  echo
  echo "FAILED:"
  awk -F'\t' '$3 == "FAILED" { printf "%-9s %-28s %s\n", $1, $2, $4 }' "$out/summary.tsv"
  echo "outputs in $out"
fi
exit "$failed"
