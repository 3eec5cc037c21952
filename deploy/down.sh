#!/bin/bash
# Stops pods, keeper and daemon and removes every kernel object they made.
# PURGE=1 removes the data (/var/lib/orlop) too. `make down` calls it as root.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -f /etc/systemd/system/orlop.service ]; then
	systemctl disable --quiet --now orlop.service || true
	rm -f /etc/systemd/system/orlop.service
	systemctl daemon-reload
fi
if [ ! -x bin/orlop ]; then
	[ ! -e /run/orlop ] || { echo "bin/orlop is missing; build it first: make build" >&2; exit 1; }
	exit 0
fi
exec bin/orlop system teardown ${PURGE:+--purge}
