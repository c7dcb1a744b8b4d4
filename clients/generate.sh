#!/usr/bin/env bash
# Generate the sync client from the awaited one into OUT (default: trephine/client, where it is checked in).
# UNASYNCD and RUFF name the two tools (see Makefile).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/trephine/client}
unasyncd=${UNASYNCD:-unasyncd}
ruff=${RUFF:-ruff}
# The package's own list of names, and what is written twice because the two surfaces differ in earnest.
by_hand=" __init__ blocking notebooks wire "
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$here" "$work/clients" # what is generated names its source as it is called in the repository
cd "$work"
pairs=() made=()
{
    echo '[tool.unasyncd.add_replacements]'
    echo '"aclose" = "close"'
    echo '"trephine.client.aio.connect" = "trephine.client.connect"' # in docstrings
} > unasyncd.toml
for source in clients/trephine/client/aio/*.py; do
    module=$(basename "$source" .py)
    # AsyncModel of trephine.client.aio.model is Model of trephine.client.model, and so for all that modules define.
    sed -nE 's/^(async def|def|class) (Async)?([A-Za-z]\w*).*/\2\3 \3/p' "$source" | while read -r name plain; do
        echo "\"trephine.client.aio.$module.$name\" = \"trephine.client.$module.$plain\""
        [ "$name" = "$plain" ] || echo "\"$name\" = \"$plain\""
    done >> unasyncd.toml
    [[ $by_hand == *" $module "* ]] && continue
    pairs+=("$source:made/$module.py")
    made+=("made/$module.py")
done
# It ends with 1 where it has written something; what it has not written is missed below.
"$unasyncd" --config unasyncd.toml --quiet --write --force --no-cache --transform-docstrings --add-editors-note \
    "${pairs[@]}" || [ $? = 1 ]
# It imports the names that it gave, and leaves the imports of those that it took.
sed -i -e '/^from trephine\.client\.aio\..* import ($/,/^)/d' -e '/^from trephine\.client\.aio\./d' "${made[@]}"
"$ruff" check --config "$here/../pyproject.toml" --quiet --fix-only "${made[@]}"
"$ruff" format --config "$here/../pyproject.toml" --quiet "${made[@]}"
mkdir -p "$out"
cp "${made[@]}" "$out/"
