#!/bin/bash
# Installs those of .ci/packages that are missing, with CI=true also of .ci/packages-ci; where that is not allowed, says
# which line would do it.
set -euo pipefail
cd "$(dirname "$0")/.."

lists=(.ci/packages)
[ "${CI:-}" != true ] || lists+=(.ci/packages-ci)
missing=()
while read -r package; do
  status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "${lists[@]}")
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" = 0 ]; then
  as_root=()
elif sudo -n true 2>/dev/null; then
  as_root=(sudo -n)
else
  echo "these packages are missing; install them, then run this again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
apt_get=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=900 -o Acquire::Retries=5)

# A server that a package brings is not to run on a machine that did not ask for it.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" install -m 755 /dev/stdin "$policy"
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "installing ${missing[*]}"
.ci/again.sh 3 10 "${apt_get[@]}" update || echo "apt-get update failed; trying with the lists that are here" >&2
# Nothing of a person's is removed for ours. What apt and dpkg tell of each package is of interest only where it failed.
log=$(mktemp)
.ci/again.sh 3 30 "${apt_get[@]}" install --no-remove --no-install-recommends "${missing[@]}" >"$log" || { cat "$log" >&2; rm -f "$log"; exit 1; }
rm -f "$log"

if [ -d /run/systemd/system ]; then
  for pair in redis-server=redis-server.service openssh-server=ssh.service; do
    [[ " ${missing[*]} " != *" ${pair%=*} "* ]] || "${as_root[@]}" systemctl --quiet disable "${pair#*=}"
  done
  if [[ " ${missing[*]} " == *" pulseaudio "* ]]; then
    "${as_root[@]}" systemctl --quiet --global disable pulseaudio.service pulseaudio.socket
  fi
fi
