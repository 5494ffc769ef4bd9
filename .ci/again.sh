#!/bin/bash
# again.sh TIMES PAUSE COMMAND...: runs a command that needs the network, and again after a pause where it failed.
set -uo pipefail
times=$1 pause=$2
shift 2
for ((try = 1; ; try++)); do
  "$@" && exit 0
  code=$?
  [ "$try" -lt "$times" ] || exit "$code"
  echo "try $try of $times failed (exit $code), again in $pause s: $*" >&2
  sleep "$pause"
done
