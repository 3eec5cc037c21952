package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
)

// delegable are the files of a group that whoever manages what is below it writes to
// (cgroups(7), "Delegation"; the kernel lists them since 4.18).
var delegable = sync.OnceValue(func() []string {
	b, err := os.ReadFile("/sys/kernel/cgroup/delegate")
	if err != nil {
		return []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}
	}
	return strings.Fields(string(b))
})

// Delegate gives the group to a user, who may then make groups below it and move its
// processes between them: the root of a container with a user namespace, by its id on
// the host. On V1 and Hybrid nothing is given, because the kernel does not protect there
// what is above. It is idempotent.
func (g *Group) Delegate(uid, gid int) error {
	if g.host.layout.Mode != V2 {
		return nil
	}
	dir := g.unifiedDir()
	if err := os.Chown(dir, uid, gid); err != nil {
		return fmt.Errorf("delegate cgroup %s: %w", g.path, err)
	}
	for _, f := range delegable() {
		// Files of controllers that the group does not have are not there.
		if err := os.Chown(dir+"/"+f, uid, gid); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delegate cgroup %s: %w", g.path, err)
		}
	}
	return nil
}
