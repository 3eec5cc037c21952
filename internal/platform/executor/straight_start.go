package executor

import (
	"bytes"
	"context"
	"io"
	"os"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// launchStraight is launch with a program in the place of orlop-init. It returns nil, and
// leaves nothing, where it is orlop-init's turn: because the plan has no straight form, or
// because something was not as it usually is.
func (e *Executor) launchStraight(ctx context.Context, id string, b *builder, stdio [3]*os.File) (_ *Process, err error) {
	if e.long {
		return nil, nil
	}
	s := b.straight(stdio)
	if s == nil {
		return nil, nil
	}
	// Nobody in the container may write to it, nor, in a user namespace, read it: as with init
	// (initfile.go). Where there is no memfd to be had, init may run from a file.
	exe, err := memfd("orlop-init", bytes.NewReader(s.program.Executable()), 0o511)
	if err != nil {
		return nil, nil
	}
	defer exe.Close()
	s.program = tiny.Program{} // it may be large
	ch, theirs, err := newChannel()
	if err != nil {
		return nil, err
	}
	s.files[s.channel] = theirs
	p := &Process{id: id, sync: ch, warnings: b.warnings, straight: s}
	ready := false
	defer func() {
		if !ready {
			p.abandon()
		}
	}()
	_, step := trace.Start(ctx, "executor clone")
	err = e.clone(p, b, processImage{files: s.files, exec: exe, namespaces: b.clone})
	step.End(&err)
	s.files = nil
	theirs.Close()
	if err != nil {
		return nil, err
	}
	ctx, step = trace.Start(ctx, "executor set-up")
	defer step.End(&err)
	stop := ch.bind(ctx)
	defer stop()
	for {
		msg, fd, err := ch.receive()
		switch {
		case err == io.EOF:
			return nil, nil // ended, by the container perhaps
		case err != nil:
			return nil, contextual(ctx, err)
		case msg[0] == plan.MsgConsole && fd >= 0 && p.console == nil:
			p.console = os.NewFile(uintptr(fd), "console")
		case msg[0] == plan.MsgReady && s.asUsual(msg[1:]):
			e.warn(ctx, p)
			ready = true
			return p, nil
		default:
			return nil, nil
		}
	}
}

// asUsual looks at what the program has found.
func (s *straight) asUsual(said []byte) bool {
	if len(said) != s.size {
		return false
	}
	for _, check := range s.checks {
		if !check(said) {
			return false
		}
	}
	return true
}

// word is what opens the gate.
func (s *straight) word() []byte {
	word := append(make([]byte, 0, maxWord), plan.MsgGo)
	word = append(append(word, s.exe...), 0)
	if s.users {
		word = append(word, make([]byte, homeAt-len(word))...)
		word = append(append(append(word, "HOME="...), s.home...), 0)
	}
	return word
}

// passed reads what the program says after the gate: nothing, or of a failure.
func (s *straight) passed(said []byte) error {
	if len(said) == 0 {
		return nil
	}
	call, errno, ok := tiny.Failed(said)
	f, known := s.after[call]
	if !ok || !known {
		return errs.New(errs.Internal, "the program that starts the process sent a message that is not known: %q", said)
	}
	f.Errno = errno
	if f.Code == plan.Exec {
		f.Hint = plan.ExecHint(errno)
	}
	return failed(f)
}
