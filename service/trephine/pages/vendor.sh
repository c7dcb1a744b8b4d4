#!/usr/bin/env bash
# Renews assets/vendor/d3.js from the packages pinned in vendor.txt: vendor.sh [OUTPUT FOLDER]
# Without a change of vendor.txt the result is byte for byte what is committed. Needs npm, tar, sha256sum.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/assets/vendor}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
: > "$work/d3.js"
: > "$work/LICENSES.txt"
while read -r name version sha256; do
  [[ -z $name || $name == \#* ]] && continue
  (cd "$work" && npm pack --silent "$name@$version" > /dev/null)
  archive="$work/$name-$version.tgz"
  echo "$sha256  $archive" | sha256sum --check --quiet
  { tar -xzOf "$archive" "package/dist/$name.min.js"; echo; } >> "$work/d3.js"
  { echo "== $name $version"; tar -xzOf "$archive" package/LICENSE; echo; } >> "$work/LICENSES.txt"
done < "$here/vendor.txt"
mv "$work/d3.js" "$work/LICENSES.txt" "$out/"
made=$(sha256sum "$out/d3.js" | cut -d' ' -f1)
grep -qx "# d3.js $made" "$here/vendor.txt" || { echo "d3.js is $made: record it in vendor.txt" >&2; exit 1; }
