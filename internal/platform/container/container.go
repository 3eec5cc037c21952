// Package container keeps containers by a directory of state, for commands that end:
// one process creates a container, another starts it, others look at it, signal it and
// delete it. It is what stands below an OCI runtime command line; no daemon is needed
// and none may be in the way.
//
// A container is a directory below the store's root:
//
//	state.json   the record: what the container is, and its process
//	config.json  its specification, as it was when it was created
//	seccomp      the compiled filter of its profile, for further processes; one with a
//	             listener has none
//	gate         the FIFO at which its process waits to be started
//	notify/      the socket of sd_notify(3), where the caller has one
//	root/        where a restore has the root filesystem, in a mount namespace of its own
//
// The record holds what the kernel cannot tell: which process and which control group
// are the container's. Everything else is asked of the kernel each time, so that it
// cannot be out of date: whether the process lives (by its number and start time; a
// number that was given to another process is never taken for it), whether it waits at
// the gate, whether it is frozen.
//
// The record is written twice: as an intent before anything is made, with the control
// group's path in it, and again once the process waits at the gate. Whoever is killed in
// between leaves an intent; Delete finds by it what was made and takes it away. Each
// write replaces the file as a whole.
//
// Who changes a container holds its lock, flock(2) on its directory; the kernel lets go
// of it with the process. Looking takes no lock.
package container

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
	"github.com/orlop-io/orlop/internal/base/unmarshal"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
)

// Options are the choices of a Store.
type Options struct {
	// Root is the directory of all containers' state; it is made where it is missing. It
	// should be on a tmpfs: what it says is of no use after a boot.
	Root string
	// Systemd has systemd make the control groups; cgroupsPath is then
	// slice:prefix:name.
	Systemd bool
	// Rootless lets a container that has no limits go without a control group where the
	// caller may not make one.
	Rootless bool
	// InitPath is the orlop-init binary.
	InitPath string
	// Log gets what a container starts without.
	Log *slog.Logger
}

// Store is a directory of containers. It is safe for concurrent use, in any number of
// processes.
type Store struct {
	o Options

	mu    sync.Mutex
	hosts map[cgroup.Driver]*cgroup.Host // those that were asked for
}

// Open returns the store of that root.
func Open(o Options) (*Store, error) {
	root, err := filepath.Abs(o.Root)
	if err != nil {
		return nil, err
	}
	o.Root = root
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{o: o}, nil
}

// record is state.json. Its fields are read by later versions: they are added to, never
// changed.
type record struct {
	Version     int               `json:"version"`
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Owner       uint32            `json:"owner"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Cgroup is the path of the control group, "" where the container has none.
	Cgroup string        `json:"cgroup,omitempty"`
	Driver cgroup.Driver `json:"cgroupDriver,omitempty"`
	// CgroupBelow is where Cgroup begins, in each hierarchy where that is not the root.
	CgroupBelow cgroup.Place `json:"cgroupBelow,omitempty"`
	// PIDNamespace tells that the container's PID namespace is its own: its processes end
	// with its first one.
	PIDNamespace bool `json:"pidNamespace"`
	// PID, Start and Boot name the process. A PID of 0 is an intent.
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
	Boot  string `json:"boot,omitempty"`  // the boot that Start is of
	// Restore tells that the process was restored, or is to be.
	Restore bool `json:"restore,omitempty"`
	// Notify is the socket of whoever wants to be told by sd_notify(3) that it is ready.
	Notify string `json:"notify,omitempty"`
}

const recordVersion = 1

// Container is one container of a store.
type Container struct {
	store *Store
	dir   string
	rec   record

	lock       *os.File           // nil: not held
	proc       *executor.Process  // of a container that this process created
	exec       *executor.Executor // the same
	made       bool               // the group was made by this process
	properties []cgroup.Property  // what annotations say of its unit
	spec       *specs.Spec        // once it was asked for
	more       *further           // the same

	notify *os.File // the socket that the container says that it is ready by
}

// ID returns the container's name.
func (c *Container) ID() string { return c.rec.ID }

// Bundle returns the directory that the container was made from.
func (c *Container) Bundle() string { return c.rec.Bundle }

// checkID refuses what could be another path than the one meant.
func checkID(id string) error {
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '+' || r == '-' || r == '.'
	}
	if id == "" || id == "." || id == ".." || len(id) > 255 || slices.ContainsFunc([]rune(id), func(r rune) bool { return !ok(r) }) {
		return errs.New(errs.Invalid, "container id %q: use letters, digits, and . _ + -, at most 255", id)
	}
	return nil
}

func (s *Store) path(id string) string { return filepath.Join(s.o.Root, id) }

// Load returns the container of that name, or errs.NotFound.
func (s *Store) Load(id string) (*Container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c := &Container{store: s, dir: s.path(id)}
	if err := c.read(); err != nil {
		return nil, err
	}
	return c, nil
}

// read reads the record. A directory without one is what a killed Create or Delete left:
// to everyone but Delete there is no container.
func (c *Container) read() error {
	data, err := rawfile.Read(c.dir + "/state.json")
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "%s: container does not exist", filepath.Base(c.dir))
	}
	if err != nil {
		return fmt.Errorf("read container: %w", err)
	}
	var r record
	if err := unmarshal.JSON(data, &r); err != nil {
		return errs.New(errs.Corrupt, "read container %s: %s/state.json: %w", filepath.Base(c.dir), c.dir, err)
	}
	if r.Version > recordVersion {
		return errs.New(errs.FailedPrecondition, "read container %s: it was made by a newer version of this program", r.ID)
	}
	c.rec = r
	return nil
}

// write replaces the record. It is not synced: it dies with the machine, as what it
// tells of does.
func (c *Container) write() error {
	data, err := c.rec.encode()
	if err == nil {
		// One writer holds the lock, so the temporary name can be the same each time, and
		// one that a killed writer left is written over.
		tmp := c.dir + "/state.tmp"
		if err = rawfile.Write(tmp, data, 0o600); err == nil {
			err = unix.Rename(tmp, c.dir+"/state.json")
		}
	}
	if err != nil {
		return fmt.Errorf("record container: %w", err)
	}
	return nil
}

// List returns all containers, by name.
func (s *Store) List() ([]*Container, error) {
	entries, err := os.ReadDir(s.o.Root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var list []*Container
	for _, e := range entries {
		if !e.IsDir() || checkID(e.Name()) != nil {
			continue
		}
		c, err := s.Load(e.Name())
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			s.o.Log.Warn("left out of the list", "container", e.Name(), "why", err)
			continue
		}
		list = append(list, c)
	}
	return list, nil
}

// Spec returns the specification that the container was created with.
func (c *Container) Spec() (*specs.Spec, error) {
	if c.spec == nil {
		s, err := readSpec(c.dir + "/config.json")
		if err != nil {
			return nil, err
		}
		c.spec = s
	}
	return c.spec, nil
}

func readSpec(path string) (*specs.Spec, error) {
	data, err := rawfile.Read(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errs.New(errs.NotFound, "specification file %s is not there; `orlop-oci spec` makes one", path)
		}
		return nil, fmt.Errorf("read specification: %w", err)
	}
	return decodeSpec(path, data)
}

func decodeSpec(path string, data []byte) (*specs.Spec, error) {
	// What is for other systems is passed over.
	var s struct {
		Version     string            `json:"ociVersion"`
		Process     *specs.Process    `json:"process"`
		Root        *specs.Root       `json:"root"`
		Hostname    string            `json:"hostname"`
		Domainname  string            `json:"domainname"`
		Mounts      []specs.Mount     `json:"mounts"`
		Hooks       *specs.Hooks      `json:"hooks"`
		Annotations map[string]string `json:"annotations"`
		Linux       *specs.Linux      `json:"linux"`
	}
	if err := unmarshal.JSON(data, &s); err != nil {
		return nil, errs.New(errs.Invalid, "specification %s: %w", path, err)
	}
	return &specs.Spec{Version: s.Version, Process: s.Process, Root: s.Root, Hostname: s.Hostname, Domainname: s.Domainname,
		Mounts: s.Mounts, Hooks: s.Hooks, Annotations: s.Annotations, Linux: s.Linux}, nil
}

// bootID is the kernel's name for this boot.
var bootID = sync.OnceValue(func() string {
	var b [36]byte
	fd, err := unix.Open("/proc/sys/kernel/random/boot_id", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	n, _ := unix.Read(fd, b[:])
	return string(b[:max(n, 0)])
})
