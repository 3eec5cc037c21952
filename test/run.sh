#!/bin/bash
# Runs every test as root and says, in one closing line, how many passed and failed.
# `make test` calls it after the linters. Leaves nothing behind, and checks that.
set -uo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests use namespaces, mounts and control groups: run as root" >&2; exit 1; }
umask 022
GO=${GO:-go}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# What a test could leave: mounts, namespaces, interfaces, tables, loops, groups, processes.
leftovers() {
	awk '{print "mount", $5}' /proc/self/mountinfo
	ls /run/netns 2>/dev/null | sed 's/^/netns /'
	ip -o link | awk -F': ' '{sub(/@.*/, "", $2); print "interface", $2}'
	nft list tables 2>/dev/null | sed 's/^/firewall /'
	losetup -n -O NAME,BACK-FILE 2>/dev/null | sed 's/^/loop /'
	find /sys/fs/cgroup -mindepth 2 -type d 2>/dev/null | grep -i orl | sed 's/^/cgroup /'
	pgrep -a '^orlop' | sed 's/^[0-9]* /process /'
	true
}
leftovers | sort >"$out/before"

# A real kubelet takes ten minutes of CPU time to build, once (test/kubelet): only if asked to.
untested=
[ "${ORLOP_TEST_KUBELET:-}" = build ] || untested='; unless the cache has a kubelet, TestKubelet did NOT run (ORLOP_TEST_KUBELET=build builds one)'

status=0
# Packages run one after another: they share two cores and one kernel.
"$GO" test -race -count=1 -p 1 -timeout 20m ./... 2>&1 | tee "$out/race" | grep -v 'no test files' || true
[ "${PIPESTATUS[0]}" = 0 ] || status=1
"$GO" test -count=1 -p 1 -tags faults -timeout 20m ./internal/base/fault ./internal/platform/cgroup ./internal/platform/namespace 2>&1 | tee -a "$out/race"
[ "${PIPESTATUS[0]}" = 0 ] || status=1

leftovers | sort >"$out/after"
if ! diff "$out/before" "$out/after" >"$out/diff"; then
	echo "FAIL: the tests left something behind (<) or took something away (>):" >&2
	cat "$out/diff" >&2
	status=1
fi
passed=$(grep -c '^ok' "$out/race")
failed=$(grep -c '^FAIL[[:space:]]' "$out/race")
[ "$status" = 0 ] || [ "$failed" -gt 0 ] || failed=1
echo "$passed passed, $failed failed$untested"
exit $status
