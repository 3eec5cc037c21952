#!/bin/bash
# Starts the daemon on its embedded defaults and runs examples/notes.yaml.
# `make up` calls it as root, after packages and build.
set -euo pipefail
cd "$(dirname "$0")/.."
orlop=$PWD/bin/orlop
log=/var/lib/orlop/daemon.log

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

if "$orlop" system info >/dev/null 2>&1; then
	say 'The daemon is already running.'
else
	say 'Starting the daemon'
	if [ -d /run/systemd/system ]; then
		sed "s|@BIN@|$PWD/bin|" deploy/orlop.service >/etc/systemd/system/orlop.service
		systemctl daemon-reload
		systemctl enable --quiet --now orlop.service
		log='journalctl -u orlop'
	else
		mkdir -p -m 0700 /var/lib/orlop
		setsid "$orlop" daemon </dev/null >>"$log" 2>&1 &
	fi
	for _ in $(seq 300); do
		"$orlop" system info >/dev/null 2>&1 && break
		sleep 0.1
	done
	"$orlop" system info >/dev/null || {
		echo "the daemon did not start; see $log" >&2
		[ ! -f "$log" ] || tail -n 20 "$log" >&2
		exit 1
	}
fi

say 'Packing the example application into an image'
"$orlop" image pack bin/notes -t localhost/notes:1 --entrypoint /bin/notes

say 'Applying examples/notes.yaml'
"$orlop" apply -f examples/notes.yaml --wait --timeout 2m

say 'Running'
"$orlop" ps
cat <<END

The application answers at http://127.0.0.1:8080/ — as root, with $PWD/bin on the path, try:

  curl -d 'text=my first note' http://127.0.0.1:8080/notes
  orlop logs notes -c digest -f                        the sidecar reads the same volume
  orlop exec -it notes -c web -- /bin/notes check      a command inside the container

What others cannot:

  kill -9 \$(cat /run/orlop/daemon.pid)                 the application goes on without its daemon:
  curl http://127.0.0.1:8080/notes
  make up                                              starts the daemon again; it finds everything as it was

  orlop delete pod notes                               the pod goes, the claim stays:
  orlop apply -f examples/notes.yaml --wait
  curl http://127.0.0.1:8080/notes                     the notes are there

Stop it all with: make down        (make down PURGE=1 removes the data too)
END
