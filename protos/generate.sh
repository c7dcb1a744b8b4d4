#!/usr/bin/env bash
# Generate the Python code of the contract into OUT (default: beside the .proto files).
# Run with the oldest supported tools, so that every newer runtime accepts the result (see Makefile).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
out=${1:-$here}
include=$(mktemp -d)
trap 'rm -rf "$include"' EXIT
# Newer wheels name the file operations_proto.proto, yet the runtime registers google/longrunning/operations.proto:
# only the latter may be imported (the former registers the same messages twice).
site=$("$python" -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parent)')
mkdir -p "$include/google/longrunning" "$out"
cp -r "$site/api" "$site/rpc" "$include/google/"
cp "$site"/longrunning/operations*.proto "$include/google/longrunning/operations.proto"
cd "$here"
"$python" -m grpc_tools.protoc -I . -I "$include" \
    --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
    trephine/v1/*.proto
