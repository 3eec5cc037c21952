package pod

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// idsPerPod is how many users and groups a user namespace of an applied pod has: 0 to 65535,
// all that 16 bits name, "nobody" among them.
const idsPerPod = 1 << 16

// takeUsers gives the pod the ids of the host for its user namespace: the first range that no other
// pod has, so that no two of them are the same user to the host. It is recorded before it is used, and the
// pod's until its sandbox is gone. Nothing on a disk has these ids, as volumes and layers are id-mapped: the
// next start may have others.
func (w *worker) takeUsers() error {
	p := w.p
	p.users.Lock()
	defer p.users.Unlock()
	if w.spec().Users != nil {
		return nil
	}
	p.mu.Lock()
	var all []*worker
	for _, o := range p.workers {
		all = append(all, o)
	}
	p.mu.Unlock()
	var taken []*namespace.IDMaps
	for _, o := range append(all, p.driven.workers()...) {
		if u := o.spec().Users; u != nil {
			taken = append(taken, u)
		}
	}
	users, err := freeUsers(p.o.FirstID, p.o.UserNamespaces, taken)
	if err != nil {
		return err
	}
	return w.update(func(st *state) { st.Users = users })
}

// freeUsers is the first of n ranges, one after another beginning with the id first, that is apart from those taken.
func freeUsers(first uint32, n int, taken []*namespace.IDMaps) (*namespace.IDMaps, error) {
	for i := range n {
		r := []specs.LinuxIDMapping{{HostID: first + uint32(i)*idsPerPod, Size: idsPerPod}}
		m := &namespace.IDMaps{UIDs: r, GIDs: r}
		free := true
		for _, t := range taken {
			free = free && !m.Overlaps(t)
		}
		if free {
			return m, nil
		}
	}
	return nil, errs.New(errs.ResourceExhausted, "all %d ranges of ids for pods with hostUsers: false are taken; delete some, or raise pod.userNamespaces.pods", n)
}

// checkIDs tells of a user or group that the pod's user namespace does not have.
func (i *identity) checkIDs(users *namespace.IDMaps, container string) error {
	if users == nil {
		return nil
	}
	missing := func(kind string, id uint32) error {
		return errs.New(errs.Invalid, "container %s: %s %d is not among the ids of the pod's user namespace", container, kind, id)
	}
	if !users.MapsUser(i.uid) {
		return missing("user", i.uid)
	}
	for _, g := range append([]uint32{i.gid}, i.groups...) {
		if !users.MapsGroup(g) {
			return missing("group", g)
		}
	}
	return nil
}

// idMapped makes the files of a mount have the ids inside the pod that they have on the host.
func idMapped(m specs.Mount, users *namespace.IDMaps) specs.Mount {
	if users != nil {
		m.UIDMappings, m.GIDMappings = users.UIDs, users.GIDs
	}
	return m
}

// rootOptions make the root of a tmpfs the pod's root's.
func rootOptions(spec *Spec) string {
	if spec.Users == nil {
		return ""
	}
	uid, gid, _ := spec.Users.Root()
	return fmt.Sprintf(",uid=%d,gid=%d", uid, gid)
}

// giveToRoot makes a file of the host, which the pod has mounted as it is, its root's.
func giveToRoot(spec *Spec, path string) error {
	if spec.Users == nil {
		return nil
	}
	uid, gid, _ := spec.Users.Root()
	return os.Chown(path, uid, gid)
}
