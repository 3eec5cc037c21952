package server

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
)

// recordVersion is raised when an older keeper could not read a record any more.
const recordVersion = 2

// plainVersion is that of records without a Runtime, by which a keeper that knows no runtimes
// would leave what they have made.
const plainVersion = 1

// record is what a restarted keeper needs to know: <dir>/state.json.
type record struct {
	Version   int
	Status    keeper.Status
	PIDStart  uint64 `json:",omitempty"` // field 22 of /proc/PID/stat: tells a process from a later one of the same number
	Log       keeper.LogConfig
	Terminal  bool   `json:",omitempty"`
	Stdin     bool   `json:",omitempty"` // its writing end is open
	StdinOnce bool   `json:",omitempty"`
	Pause     bool   `json:",omitempty"` // has no streams
	SharesPID bool   `json:",omitempty"` // its PID namespace does not end with it
	Seccomp   string `json:",omitempty"` // name of the profile, for exec
	OOMScore  int    `json:",omitempty"` // for exec
	Deleting  bool   `json:",omitempty"`
	// StartAt is when its start was asked for. It becomes the status's once the program was executed.
	StartAt time.Time `json:",omitzero"`
	// Runtime made it; nil: our own executor.
	Runtime *ociruntime.Runtime `json:",omitempty"`
	// Unsettled: the runtime was asked to freeze or thaw it, and has not answered.
	Unsettled bool `json:",omitempty"`
}

// save replaces the record. A kill leaves the old one or the new one. It is called with
// mu held, or before c is known to others.
func (c *container) save() error {
	c.rec.Version = plainVersion
	if c.rec.Runtime != nil {
		c.rec.Version = recordVersion
	}
	raw, err := json.Marshal(&c.rec)
	if err != nil {
		return err
	}
	return replace(filepath.Join(c.dir, "state.json"), raw)
}

// replace is for files with one writer: the temporary name is always the same, so a kill
// leaves at most that one, and the next write overwrites it.
func replace(path string, raw []byte) error {
	tmp := path + ".new"
	fd, err := unix.Open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return &os.PathError{Op: "open", Path: tmp, Err: err}
	}
	n, err := unix.Write(fd, raw)
	unix.Close(fd)
	if err == nil && n < len(raw) {
		err = unix.ENOSPC
	}
	if err == nil {
		err = unix.Rename(tmp, path)
	}
	if err != nil {
		unix.Unlink(tmp)
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func (c *container) load() error {
	raw, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(raw, &c.rec); err != nil {
		return errs.New(errs.Corrupt, "%s/state.json: %w", c.dir, err)
	}
	if c.rec.Version > recordVersion {
		return errs.New(errs.Unsupported, "%s/state.json has version %d, this keeper knows %d; start the newer keeper", c.dir, c.rec.Version, recordVersion)
	}
	if c.rec.Status.ID != filepath.Base(c.dir) {
		return errs.New(errs.Corrupt, "%s/state.json is of container %q", c.dir, c.rec.Status.ID)
	}
	return nil
}

// Seccomp profiles are kept for exec, once each: hundreds of containers have the same.
// They are named by their content, and some are in memory, decoded.

const maxProfiles = 32

func (s *Server) profilePath(name string) string {
	return filepath.Join(s.o.Dir, "seccomp", name+".json")
}

// keepProfile writes the profile, where it is not there, and returns its name and what it
// says. The profile is not to be changed.
func (s *Server) keepProfile(raw json.RawMessage) (string, *specs.LinuxSeccomp, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return "", nil, nil
	}
	sum := sha256.Sum256(raw)
	name := hex.EncodeToString(sum[:16])
	s.profiles.Lock()
	defer s.profiles.Unlock()
	if p := s.decoded[name]; p != nil {
		return name, p, nil
	}
	p := new(specs.LinuxSeccomp)
	if err := json.Unmarshal(raw, p); err != nil {
		return "", nil, errs.New(errs.Invalid, "decode the seccomp profile: %w", err)
	}
	if err := replace(s.profilePath(name), raw); err != nil {
		return "", nil, err
	}
	s.remember(name, p)
	return name, p, nil
}

// remember is called with profiles held.
func (s *Server) remember(name string, p *specs.LinuxSeccomp) {
	if len(s.decoded) >= maxProfiles {
		clear(s.decoded)
	}
	s.decoded[name] = p
}

func (s *Server) profile(name string) (*specs.LinuxSeccomp, error) {
	if name == "" {
		return nil, nil
	}
	s.profiles.Lock()
	defer s.profiles.Unlock()
	if p := s.decoded[name]; p != nil {
		return p, nil
	}
	raw, err := os.ReadFile(s.profilePath(name))
	if err != nil {
		return nil, fmt.Errorf("read the container's seccomp profile: %w", err)
	}
	p := new(specs.LinuxSeccomp)
	if err := json.Unmarshal(raw, p); err != nil {
		return nil, errs.New(errs.Corrupt, "%s: %w", s.profilePath(name), err)
	}
	s.remember(name, p)
	return p, nil
}

// sweepProfiles removes those that no container has.
func (s *Server) sweepProfiles() {
	used := map[string]bool{}
	for _, c := range s.containers {
		used[c.rec.Seccomp+".json"] = true
	}
	ents, err := os.ReadDir(filepath.Join(s.o.Dir, "seccomp"))
	for _, e := range ents {
		if !used[e.Name()] {
			err = errors.Join(err, os.Remove(filepath.Join(s.o.Dir, "seccomp", e.Name())))
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("unused seccomp profiles are left", "error", err)
	}
}
