#!/usr/bin/env bash
# Lint the contract with buf (rules in buf.yaml). The imported google files are copied beside for the time.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$(python -c 'import google.rpc, pathlib; print(pathlib.Path(google.rpc.__path__[0]).parent)')
mkdir -p "$work/trephine/v1" "$work/google/longrunning"
cp "$here"/trephine/v1/*.proto "$work/trephine/v1/"
cp "$here/buf.yaml" "$work/"
cp -r "$site/api" "$site/rpc" "$work/google/"
cp "$site"/longrunning/operations*.proto "$work/google/longrunning/operations.proto"
cd "$work"
buf lint --path trephine
