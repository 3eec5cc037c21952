package executor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// userNS is a user namespace that containers are in, and what it maps (user_namespaces(7)).
// A new one is made by a process that does nothing else, and joined like any other. So it
// is there before the mounts are opened, which are id-mapped by it.
type userNS struct {
	file       *os.File
	uids, gids idMap
}

func (u *userNS) close() { u.file.Close() }

// idMap is a mapping of ids in the namespace to those of the caller's.
type idMap []specs.LinuxIDMapping

// maxMappings is how many lines the kernel takes.
const maxMappings = 340

func (m idMap) check(field string) error {
	if len(m) == 0 {
		return errs.New(errs.Invalid, "a new user namespace needs linux.%s", field)
	}
	if len(m) > maxMappings {
		return errs.New(errs.Invalid, "linux.%s has %d ranges; the kernel takes at most %d", field, len(m), maxMappings)
	}
	overlap := func(a, asize, b, bsize uint32) bool {
		return uint64(a) < uint64(b)+uint64(bsize) && uint64(b) < uint64(a)+uint64(asize)
	}
	for i, r := range m {
		if r.Size == 0 || uint64(r.ContainerID)+uint64(r.Size) > 1<<32-1 || uint64(r.HostID)+uint64(r.Size) > 1<<32-1 {
			return errs.New(errs.Invalid, "linux.%s: the range %d:%d:%d is empty or too long", field, r.ContainerID, r.HostID, r.Size)
		}
		for _, o := range m[:i] {
			if overlap(r.ContainerID, r.Size, o.ContainerID, o.Size) || overlap(r.HostID, r.Size, o.HostID, o.Size) {
				return errs.New(errs.Invalid, "linux.%s: the ranges %d:%d:%d and %d:%d:%d overlap", field, o.ContainerID, o.HostID, o.Size, r.ContainerID, r.HostID, r.Size)
			}
		}
	}
	return nil
}

// host translates an id of the namespace. Ids that are not mapped have none.
func (m idMap) host(id uint32) (uint32, bool) {
	for _, r := range m {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + (id - r.ContainerID), true
		}
	}
	return 0, false
}

// text is the mapping as the kernel and newuidmap(1) take it, a range a line.
func (m idMap) text() string {
	var b strings.Builder
	for _, r := range m {
		fmt.Fprintf(&b, "%d %d %d\n", r.ContainerID, r.HostID, r.Size)
	}
	return b.String()
}

func (m idMap) equal(o idMap) bool {
	sorted := func(m idMap) idMap {
		m = slices.Clone(m)
		slices.SortFunc(m, func(a, b specs.LinuxIDMapping) int { return int(int64(a.ContainerID) - int64(b.ContainerID)) })
		merged := m[:0]
		for _, r := range m { // ranges that go on where another ends are one
			if n := len(merged); n > 0 && merged[n-1].ContainerID+merged[n-1].Size == r.ContainerID && merged[n-1].HostID+merged[n-1].Size == r.HostID {
				merged[n-1].Size += r.Size
				continue
			}
			merged = append(merged, r)
		}
		return merged
	}
	return slices.Equal(sorted(m), sorted(o))
}

// parseIDMap reads /proc/PID/uid_map.
func parseIDMap(text string) (idMap, error) {
	var m idMap
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, fmt.Errorf("not an id mapping: %q", line)
		}
		var n [3]uint32
		for i, s := range f {
			v, err := strconv.ParseUint(s, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("not an id mapping: %q", line)
			}
			n[i] = uint32(v)
		}
		m = append(m, specs.LinuxIDMapping{ContainerID: n[0], HostID: n[1], Size: n[2]})
	}
	return m, nil
}

// idle is a program that waits in a user namespace until the other end of its socket is
// closed.
var idle = sync.OnceValues(func() (*os.File, error) {
	var p tiny.Program
	p.Call(unix.SYS_RECVFROM, plan.SocketFD, 0, 0, 0, 0, 0)
	p.Call(unix.SYS_EXIT_GROUP, 0)
	return program("user-namespace", p.Executable())
})

// newUserNS makes a user namespace with those mappings.
func newUserNS(uids, gids idMap) (*userNS, error) {
	if err := uids.check("uidMappings"); err != nil {
		return nil, err
	}
	if err := gids.check("gidMappings"); err != nil {
		return nil, err
	}
	exe, err := idle()
	if err != nil {
		return nil, err
	}
	u := &userNS{uids: uids, gids: gids}
	err = helper(exe, nil, unix.CLONE_NEWUSER, func(pid int) error {
		if err := writeMaps(pid, uids, gids); err != nil {
			return err
		}
		u.file, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", pid))
		return err
	})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (the kernel makes none for who is in a chroot, nor where kernel.unprivileged_userns_clone forbids it; nsenter(1) and pivot_root(8) do without a chroot)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("make user namespace: %w", err)
	}
	return u, nil
}

// openUserNS opens the user namespace at path, and finds out what it maps. It returns nil
// for the one that the caller is in.
func openUserNS(path string) (*userNS, error) {
	f, err := openNamespace(path, unix.CLONE_NEWUSER)
	if err != nil {
		return nil, err
	}
	if same, err := sameNamespace(f, "/proc/self/ns/user"); same || err != nil {
		f.Close()
		return nil, err
	}
	u := &userNS{file: f}
	var p tiny.Program
	p.Call(unix.SYS_SETNS, plan.SocketFD+1, unix.CLONE_NEWUSER)
	p.Call(unix.SYS_WRITE, plan.SocketFD, p.Data([]byte{plan.MsgCrossed}), 1)
	p.Call(unix.SYS_RECVFROM, plan.SocketFD, 0, 0, 0, 0, 0)
	p.Call(unix.SYS_EXIT_GROUP, 0)
	exe, err := program("user-namespace", p.Executable())
	if err == nil {
		err = helper(exe, []*os.File{f}, 0, func(pid int) (err error) {
			if u.uids, err = readMap(pid, "uid_map"); err == nil {
				u.gids, err = readMap(pid, "gid_map")
			}
			return err
		})
		exe.Close()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("join user namespace %s: %w", path, err)
	}
	if len(u.uids) == 0 || len(u.gids) == 0 {
		f.Close()
		return nil, errs.New(errs.FailedPrecondition, "join user namespace %s: no ids are mapped in it yet", path)
	}
	return u, nil
}

func readMap(pid int, name string) (idMap, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		return nil, err
	}
	return parseIDMap(string(b))
}

// helper runs exe, a program of package tiny, until fn, which is given its process id, has
// returned. A program that gets files begins by saying that it is where it should be.
func helper(exe *os.File, given []*os.File, flags uintptr, fn func(pid int) error) error {
	ch, theirs, err := newChannel()
	if err != nil {
		return err
	}
	files := []uintptr{theirs.Fd(), theirs.Fd(), theirs.Fd(), theirs.Fd()}
	for _, f := range given {
		files = append(files, f.Fd())
	}
	path := fmt.Sprintf("/proc/self/fd/%d", len(files))
	files = append(files, exe.Fd())
	pid, err := syscall.ForkExec(path, []string{exe.Name()}, &syscall.ProcAttr{Files: files, Sys: &syscall.SysProcAttr{Cloneflags: flags}})
	theirs.Close()
	if err != nil {
		ch.close()
		if err == unix.ENOSPC || err == unix.EUSERS {
			err = errs.New(errs.ResourceExhausted, "clone: %w; user.max_user_namespaces or the depth of nesting is reached", err)
		}
		return kinded(fmt.Errorf("clone: %w", err), err)
	}
	if given != nil {
		var msg []byte
		if msg, _, err = ch.receive(); err == nil {
			if _, errno, ok := tiny.Failed(msg); ok {
				err = unix.Errno(errno)
			}
		}
	}
	if err == nil {
		err = fn(pid)
	}
	ch.close()
	for {
		if _, e := unix.Wait4(pid, nil, 0, nil); e != unix.EINTR {
			break
		}
	}
	return kinded(err, err)
}

// writeMaps maps the ids of the user namespace of pid. Whoever may not do that himself has
// newuidmap(1) and newgidmap(1) do it, which know what he was granted in subuid(5).
func writeMaps(pid int, uids, gids idMap) error {
	dir := fmt.Sprintf("/proc/%d/", pid)
	for _, m := range []struct {
		file, command string
		ids           idMap
	}{{"uid_map", "newuidmap", uids}, {"gid_map", "newgidmap", gids}} {
		err := writeMap(dir+m.file, m.ids)
		if errors.Is(err, unix.EPERM) {
			err = mapByCommand(m.command, pid, m.ids, err)
		}
		// One may always map himself, if the process can then drop no group.
		if own := m.file == "gid_map"; err != nil && own && len(m.ids) == 1 && m.ids[0].Size == 1 && int(m.ids[0].HostID) == os.Getegid() {
			if e := os.WriteFile(dir+"setgroups", []byte("deny"), 0); e == nil {
				if e = writeMap(dir+m.file, m.ids); e == nil {
					err = nil
				}
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func writeMap(path string, m idMap) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(m.text()) // in one piece: it is taken once
	return err
}

func mapByCommand(command string, pid int, m idMap, refused error) error {
	path, err := exec.LookPath(command)
	if err != nil {
		return errs.New(errs.PermissionDenied, "map ids %s: %w; a user without CAP_SETUID and CAP_SETGID needs %s (of the package uidmap or shadow-utils)",
			strings.ReplaceAll(strings.TrimSpace(m.text()), "\n", ", "), refused, command)
	}
	out, err := exec.Command(path, append([]string{strconv.Itoa(pid)}, strings.Fields(m.text())...)...).CombinedOutput()
	if err != nil {
		return errs.New(errs.PermissionDenied, "map ids by %s: %w: %s (are the ranges granted in /etc/subuid and /etc/subgid?)", command, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// sameNamespace tells whether f is the namespace at path.
func sameNamespace(f *os.File, path string) (bool, error) {
	var a, b unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &a); err != nil {
		return false, fmt.Errorf("look at namespace %s: %w", f.Name(), err)
	}
	if err := unix.Stat(path, &b); err != nil {
		return false, fmt.Errorf("look at namespace %s: %w", path, err)
	}
	return a.Dev == b.Dev && a.Ino == b.Ino, nil
}

// inUserNS tells whether this process is in a user namespace itself, where no device can be
// made. The initial one has a number of its own (linux/nsfs.h).
var inUserNS = sync.OnceValue(func() bool {
	const initial = 0xEFFFFFFD
	var st unix.Stat_t
	return unix.Stat("/proc/self/ns/user", &st) == nil && st.Ino != initial
})

// ownedBy tells whether the namespace f belongs to the user namespace u: its owner's root
// is then privileged in it (ioctl_nsfs(2)).
func (u *userNS) owns(f *os.File) bool {
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var a, b unix.Stat_t
	return unix.Fstat(fd, &a) == nil && unix.Fstat(int(u.file.Fd()), &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}
