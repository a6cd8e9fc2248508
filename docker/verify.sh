#!/usr/bin/env bash
# Builds docker/server.Dockerfile and runs the server in it, where no Docker engine does: the base image is made by debootstrap, the
# build is buildah's in a chroot, and the image runs as its own user on a read-only root, without any network but its own loopback.
# Needs root on Debian or a kin of it. pip takes its packages from where this machine's pip does.
# Exit codes: 0 built and ran, 77 can't be done on this machine, any other is a fault.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "docker/verify.sh: $*"; }
skip() {
  say "NOT VERIFIED: $*"
  exit 77
}

[ "$(id -u)" = 0 ] || skip "needs root"
for tool in debootstrap buildah unshare; do
  command -v "$tool" > /dev/null || skip "needs $tool"
done
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ -e "/usr/share/debootstrap/scripts/$suite" ] || skip "debootstrap does not know the release '$suite'"
unshare --mount --net --pid --fork true 2> /dev/null || skip "may not make namespaces here"

work=$(mktemp --directory "${TMPDIR:-/var/tmp}/offramp-verify.XXXXXX")
build() { # buildah, with everything that it writes under $work
  buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"
}
clean() {
  build umount --all > /dev/null 2>&1 || true
  rm -rf --one-file-system "$work"
}
trap clean EXIT
trap 'exit 130' INT TERM
echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$work/policy.json"
policy=(--signature-policy "$work/policy.json")

say "making a base image of Debian $suite"
container=$(build from "${policy[@]}" scratch)
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$(build mount "$container")" \
  ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} > "$work/debootstrap.log" 2>&1 || {
  tail -n 20 "$work/debootstrap.log"
  skip "debootstrap could not fetch Debian $suite"
}
build umount "$container" > /dev/null
build commit --quiet --rm "${policy[@]}" "$container" localhost/offramp-base > /dev/null

# pip in the build is to find what it finds here: its settings, each file and folder that they name, and the certificates
python3 -m pip config list 2> /dev/null | sed -nE "s/^(global|install|:env:)\.([a-z-]+)='(.*)'$/\2 = \3/p" | sed 's/\\n/ /g' \
  | awk -F ' = ' '{ last[$1] = $0 } END { print "[global]"; for (key in last) print last[key] }' > "$work/pip.conf"
volumes=(--volume "$work/pip.conf:/etc/pip.conf:ro" --volume /etc/ssl/certs:/etc/ssl/certs:ro)
{
  grep -oE '[ =]/[^ ]+' "$work/pip.conf" | tr -d ' =' || true
  # an index on disk refers to files beside it
  grep -oE 'file:///[^ ]+' "$work/pip.conf" | sed 's,^file://,,' | xargs --no-run-if-empty dirname || true
} | sort --unique > "$work/paths"
while read -r path; do
  [ ! -e "$path" ] || [[ "$path" == /etc/ssl/certs/* ]] || volumes+=(--volume "$path:$path:ro")
done < "$work/paths"

say "building docker/server.Dockerfile"
build build --isolation chroot --format docker --pull-never --quiet "${policy[@]}" "${volumes[@]}" \
  --build-arg BASE=localhost/offramp-base --file docker/server.Dockerfile --tag localhost/offramp-server . > "$work/build.log" 2>&1 || {
  tail -n 40 "$work/build.log"
  exit 1
}

say "running it"
image=$(build from "${policy[@]}" --pull-never localhost/offramp-server)
root=$(build mount "$image")
build inspect --type image localhost/offramp-server > "$work/image.json"
unshare --mount --net --pid --fork --kill-child python3 docker/run_image.py "$root" "$work/image.json"
say "built and ran docker/server.Dockerfile"
