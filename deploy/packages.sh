#!/bin/sh
# Installs what is missing of the operating system's packages (Debian, Ubuntu).
#   deploy/packages.sh run|test|bench
set -eu
peers='containerd runc podman crun iptables containernetworking-plugins' # of the benchmark and of orlop-oci's tests
run='xfsprogs e2fsprogs util-linux ca-certificates'
test="$run gcc libc6-dev libseccomp-dev pkg-config busybox-static iproute2 nftables curl procps xz-utils qemu-system-x86 qemu-system-common dbus systemd uidmap criu apparmor buildah $peers"
# virtiofsd is part of qemu-system-common in Debian 12, and a package of its own later.
virtiofsd=
[ -x /usr/lib/qemu/virtiofsd ] || virtiofsd=virtiofsd
test="$test $virtiofsd"
bench="$run busybox-static iproute2 procps nftables qemu-system-x86 qemu-system-common $peers $virtiofsd"
case "${1:-}" in
run) want=$run ;;
test) want=$test ;;
bench) want=$bench ;;
*) echo "usage: $0 run|test|bench" >&2; exit 2 ;;
esac
command -v dpkg-query >/dev/null || {
	echo "this is neither Debian nor Ubuntu; install what stands for: $want" >&2
	exit 0
}
missing=
for p in $want; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing="$missing $p"
done
[ -n "$missing" ] || exit 0
[ "$(id -u)" = 0 ] || { echo "installing$missing needs root" >&2; exit 1; }
echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt-get update -qq >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
# A name that this release does not have is left out.
have=
for p in $missing; do
	if apt-cache show "$p" >/dev/null 2>&1; then have="$have $p"; else echo "not in this release: $p" >&2; fi
done
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $have >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
