package executor

import (
	"context"
	"errors"
	"io"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// A start in another user or time namespace (crossing.go) is one program, too: it has a single
// thread, so it may enter them itself, and the clone goes on where it was made. Nothing is
// executed on the way, so what was opened before stays open, and the memory stays the host's
// user namespace's (would_dump in fs/exec.c: who could not read the program may not trace it).

// unusual is why orlop-init has to do a crossing over.
type unusual string

func (u unusual) Error() string { return string(u) }

// cross enters the namespaces, and goes on in a clone that is born into them.
func (s *straight) cross(b *builder, user uint64, entered []uint64) {
	p := &s.program
	b.enter(p, user, entered, s.channel, func(string) {})
	// The parent may have something to do for a process that is there.
	lost := tiny.End(plan.NotExecuted)
	p.On(tiny.Results{Error: lost, Zero: lost}, unix.SYS_READ, s.channel, s.gate, 1)
}

// arrival is builder.arrival for a program.
func (s *straight) arrival(p *Process, ch *channel) (pid int, err error) {
	msg, pid, err := ch.receiveFrom()
	switch {
	case err == io.EOF:
		return 0, unusual("it ended on its way into the namespaces")
	case err != nil:
		return 0, err
	case msg[0] != plan.MsgCrossed:
		return 0, unusual(s.said(msg))
	}
	return pid, nil
}

// crossed has the program go on, once it is in its namespaces.
func (s *straight) crossed(ctx context.Context, b *builder, p *Process, ch *channel) error {
	if err := b.crossed(ctx, p, ch, s.arrival); err != nil {
		return err
	}
	if err := b.arrived(p.pid); err != nil {
		return err
	}
	if _, err := ch.file.Write([]byte{plan.MsgGo}); err != nil && !errors.Is(err, unix.EPIPE) {
		return contextual(ctx, err)
	}
	return nil
}

// idmap maps the ids of a mount by a user namespace.
func (s *straight) idmap(fd, user uint64, recursive bool) {
	s.setattr(fd, recursive, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: user})
}

// cover attaches an id-mapped clone of a directory of the host over it: see child/idmap.go.
func (s *straight) cover(user uint64, path string) {
	p := &s.program
	at := p.String(path)
	fd := s.opens(unix.SYS_OPEN_TREE, here, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	s.idmap(fd, user, false)
	p.Call(unix.SYS_MOVE_MOUNT, fd, p.String(""), here, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	s.closes(fd)
}

// as changes whose the files are that the process makes, with all its capabilities: see
// child/root.go. Whether the user changes no call tells; it does for who may change it.
func (s *straight) as(uid, gid uint64) bool {
	const may = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var own [2]unix.CapUserData
	if ownCaps()&may != may || unix.Capget(&hdr, &own[0]) != nil {
		return false
	}
	p := &s.program
	p.Try(unix.SYS_SETFSGID, gid)
	p.Try(unix.SYS_SETFSUID, uid)
	s.capset(ownCaps(), ownCaps(), uint64(own[0].Inheritable)|uint64(own[1].Inheritable)<<32)
	return true
}
