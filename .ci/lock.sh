#!/bin/bash
# Makes both locks again: what a device is made of (runtime.lock, with hashes) and what our own tools are (constraints.txt).
set -euo pipefail
cd "$(dirname "$0")/.."
# One version of a package for every Python: what is tested is what is shipped.
uv=(.venv/bin/uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --no-header --no-annotate)
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT

lock=acoupi_fleet/runtime.lock
sed -n '/^#/p; /^#/!q' "$lock" > "$new/runtime.lock"
.venv/bin/python - > "$new/wanted" <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["project"]["optional-dependencies"]["runtime"], "pip>=24", sep="\n")
PYTHON
"${uv[@]}" --generate-hashes - < "$new/wanted" >> "$new/runtime.lock"

echo "# The versions of everything that is tested and tested with, for pip's --constraint. Made by: make lock" > "$new/constraints.txt"
"${uv[@]}" --extra dev --constraint "$new/runtime.lock" pyproject.toml >> "$new/constraints.txt"

cp "$new/runtime.lock" "$lock"
cp "$new/constraints.txt" .ci/constraints.txt
