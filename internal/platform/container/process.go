package container

import (
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// inherit returns the process with what it gets from the caller besides what is said of it:
// the sockets of a service manager.
func inherit(p *specs.Process, listenFDs int) *specs.Process {
	if listenFDs == 0 {
		return p
	}
	q := *p
	q.Env = append(slices.Clone(p.Env), "LISTEN_FDS="+strconv.Itoa(listenFDs), "LISTEN_PID=1")
	return &q
}
