#!/bin/sh
# The power supply of one sensor: joins the sensor's cgroups, then starts its container, again whenever it reboots.
#   power.sh STATE_DIRECTORY CGROUP... -- COMMAND...
set -eu
state=$1
shift
while [ "$1" != -- ]; do
  echo $$ > "$1/cgroup.procs"
  shift
done
shift
while :; do
  "$@" < /dev/null >> "$state/console.log" 2>&1 &
  echo $! > "$state/container.pid.new"
  mv "$state/container.pid.new" "$state/container.pid"
  code=0
  wait $! || code=$?
  [ "$code" = 133 ] || exit "$code" # 133 is the container's word for "reboot"
done
