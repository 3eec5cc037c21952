#!/bin/bash
# Runs every fuzz target for a while (FUZZTIME, 10s): the tests run their seeds only,
# since building for the search takes longer than all seeds. `make fuzz` calls it;
# PATTERN=Unpack runs those whose names match.
set -euo pipefail
cd "$(dirname "$0")/.."
GO=${GO:-go}
found=0
while IFS=: read -r file line; do
	name=${line#func }
	name=${name%%(*}
	[[ $name =~ ${PATTERN:-.} ]] || continue
	found=1
	echo "$(dirname "$file") $name"
	"$GO" test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-10s}" "./$(dirname "$file")" | tail -n 3
done < <(git grep -o '^func Fuzz[A-Za-z0-9]*(' -- '*_test.go')
[ $found = 1 ] || { echo "no fuzz target matches ${PATTERN:-}" >&2; exit 1; }
