package executor

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// Paths in a container: see child/path.go.

// how are the arguments of openat2(2) after the directory.
func (s *straight) how(path string, flags, resolve uint64) []uint64 {
	how := s.program.Words(flags|unix.O_CLOEXEC, 0, resolve) // struct open_how
	return []uint64{s.program.String(path), how, unix.SizeofOpenHow}
}

// inRoot are the arguments of openat2(2) for a path in the container.
func (s *straight) inRoot(path string, flags, resolve uint64) []uint64 {
	if !guards.InRoot.On() {
		return append([]uint64{here}, s.how(s.at+"/"+path, flags, resolve)...)
	}
	return append([]uint64{s.root}, s.how(path, flags, resolve|unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)...)
}

// open opens a path in the container.
func (s *straight) open(path string, flags uint64) uint64 {
	return s.opens(unix.SYS_OPENAT2, s.inRoot(path, flags, 0)...)
}

// beneath opens a path below a directory that is not the container's to change.
func (s *straight) beneath(dir uint64, path string, flags, resolve uint64) uint64 {
	return s.opens(unix.SYS_OPENAT2, append([]uint64{dir}, s.how(path, flags, resolve|unix.RESOLVE_BENEATH)...)...)
}

// kind is what makePath makes where nothing is: a directory, an empty file, or whichever of them
// a descriptor is of.
type kind struct {
	dir  bool
	mode uint64
	like uint64
}

var directory = kind{dir: true, mode: 0o755}

// makePath opens what is at a path, and makes it, and the directories above it, if there is
// nothing. What leads over a link into nothing is orlop-init's. That a file is where a
// directory is wanted, or the other way around, shows when something is mounted on it.
func (s *straight) makePath(path string, k kind, resolve uint64) (fd uint64, ok bool) {
	p := &s.program
	var flags uint64 = unix.O_PATH
	if k.dir {
		flags |= unix.O_DIRECTORY
	}
	parts := strings.FieldsFunc(path, func(r rune) bool { return r == '/' })
	last := len(parts) - 1
	// With the first in fd, each opens the next and closes the one before.
	calls := 3*len(parts) - 1 + 2*(1-len(parts)%2)
	if guard.Enabled {
		calls += len(parts)
	}
	if !guards.Walk.On() {
		calls = 2*len(parts) + 1
	}
	if k.like != 0 {
		calls += 3
	}
	switch {
	case len(parts) == 0: // the root is there
		return s.opens(unix.SYS_OPENAT2, s.inRoot(path, flags, resolve)...), true
	case calls > 255:
		return 0, false
	}
	fd = s.take()
	p.On(tiny.Results{Error: tiny.Report, But: unix.ENOENT, More: tiny.Skip(calls)}, unix.SYS_OPENAT2, s.inRoot(path, flags, resolve)...)
	create := func(i int, at uint64, name string, next uint64) {
		switch {
		case i < last:
			p.Try(unix.SYS_MKDIRAT, at, p.String(name), 0o755)
		case k.dir:
			p.Try(unix.SYS_MKDIRAT, at, p.String(name), k.mode)
		case k.like == 0:
			p.Try(unix.SYS_MKNODAT, at, p.String(name), unix.S_IFREG|k.mode, 0)
		default: // only a directory has something in it
			p.On(tiny.Results{Error: tiny.Skip(2)}, unix.SYS_OPENAT, k.like, p.String("."), unix.O_PATH|unix.O_CLOEXEC, 0)
			p.Try(unix.SYS_CLOSE, next)
			p.On(tiny.Results{Error: tiny.Skip(1), Zero: tiny.Skip(1)}, unix.SYS_MKDIRAT, at, p.String(name), 0o755)
			p.Try(unix.SYS_MKNODAT, at, p.String(name), unix.S_IFREG|0o644, 0)
		}
	}
	if !guards.Walk.On() {
		at := s.at
		for i, name := range parts {
			at += "/" + name
			create(i, here, at, fd)
			s.window(guards.Walk)
		}
		p.Call(unix.SYS_OPENAT, here, p.String(at), unix.O_PATH|unix.O_CLOEXEC, 0)
		return fd, true
	}
	spare := s.take()
	cur, next, other := s.root, fd, spare
	for i, name := range parts {
		create(i, cur, name, next)
		of := flags | unix.O_NOFOLLOW
		if i < last {
			of |= unix.O_DIRECTORY
		}
		// Names of one component cannot leave cur; mounts on it are crossed.
		p.Call(unix.SYS_OPENAT2, append([]uint64{cur}, s.how(name, of, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)...)...)
		s.window(guards.Walk)
		if i > 0 {
			p.Try(unix.SYS_CLOSE, cur)
		}
		cur, next, other = next, other, next
	}
	if cur != fd {
		p.Call(unix.SYS_DUP3, cur, fd, unix.O_CLOEXEC)
		p.Try(unix.SYS_CLOSE, cur)
	}
	s.gone(spare)
	return fd, true
}

// parent opens the directory of a path, which it makes if it is missing. It stays open for
// the next in the same directory: see release.
func (s *straight) parent(path string) (fd uint64, name string, ok bool) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 || i == len(path)-1 {
		return 0, "", false
	}
	dir, name := path[:max(i, 1)], path[i+1:]
	if s.holds != dir {
		s.release()
		if s.held, ok = s.makePath(dir, directory, 0); !ok {
			return 0, "", false
		}
		s.holds = dir
	}
	return s.held, name, true
}

// release closes what parent has opened: something may be mounted over it next.
func (s *straight) release() {
	if s.holds != "" {
		s.closes(s.held)
		s.holds = ""
	}
}

// window gives an attacker a moment: see package guard.
func (s *straight) window(guard.Guard) {
	if guard.Enabled {
		s.program.Try(unix.SYS_NANOSLEEP, s.program.Words(0, 300_000), 0)
	}
}

// where has the parent know where a descriptor leads, from the process's root.
func (s *straight) where(fd uint64) (told func(said []byte) (path string, whole bool)) {
	p := &s.program
	// A path that is longer is not asked for what follows.
	size := len(s.at) + 96
	room := p.Room(size)
	p.Call(unix.SYS_READLINKAT, s.proc, p.String("self/fd/"+itoa(fd)), room, uint64(size))
	at := s.tell(room, size)
	return func(said []byte) (string, bool) {
		path := string(said[at : at+size])
		end := strings.IndexByte(path, 0)
		if end < 0 {
			return path, false
		}
		return path[:end], true
	}
}
