package differential

import (
	"path"
	"sync"
)

// difference is one that is known, with its reason. Patterns are those of path.Match,
// but that * matches / too.
type difference struct {
	cases, finding string
	reason         string
}

var known = []difference{
	{"*", "keyring", "The keyring bears our name, not the container's, and a command that is executed later gets one of its own."},
	{"*", "cgroup path *", "A group has a directory only in hierarchies in which something is limited, or that tell what it uses; in the others a process is in the nearest group above."},
	{"*", "cgroup devices devices.list", "On a host with cgroup2 devices are decided by a BPF program there, not by the hierarchy of v1."},
}

var occurred struct {
	sync.Mutex
	known map[int]bool
}

// explained tells whether a difference is known, and notes that it has occurred.
func explained(name, finding, ref, own string) bool {
	for i, k := range known {
		if match(k.cases, name) && match(k.finding, finding) {
			occurred.Lock()
			defer occurred.Unlock()
			if occurred.known == nil {
				occurred.known = map[int]bool{}
			}
			occurred.known[i] = true
			return true
		}
	}
	return false
}

func match(pattern, s string) bool {
	ok, err := path.Match(slashless(pattern), slashless(s))
	return err == nil && ok
}

func slashless(s string) string {
	b := []byte(s)
	for i := range b {
		if b[i] == '/' {
			b[i] = 1
		}
	}
	return string(b)
}
