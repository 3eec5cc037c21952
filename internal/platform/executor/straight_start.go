package executor

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// straight returns the program that takes the place of orlop-init, nil where there is none, and
// the phases that it tells of.
func (e *Executor) straight(b *builder, stdio [3]*os.File) (s *straight, at *phases) {
	if e.long {
		return nil, nil
	}
	at = &phases{}
	if b.traced {
		defer func(ops []plan.Op) { b.plan.Ops = ops }(b.plan.Ops)
		at.clocks(&b.plan)
	}
	return b.straight(stdio), at
}

// launchStraight is launch with a program in the place of orlop-init. It returns nil, and
// leaves nothing, where it is orlop-init's turn because something was not as it usually is.
func (e *Executor) launchStraight(ctx context.Context, id string, b *builder, s *straight, at *phases) (_ *Process, err error) {
	// Nobody in the container may write to it, nor, in a user namespace, read it: as with init
	// (initfile.go). Where there is no memfd to be had, init may run from a file.
	exe, err := memfd("orlop-init", bytes.NewReader(s.program.Executable()), unreadable())
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
	namespaces := b.clone
	if s.crosses {
		namespaces = b.hostClone
		if err := ch.identify(true); err != nil {
			ch.close()
			theirs.Close()
			return nil, err
		}
	}
	p := &Process{id: id, sync: ch, warnings: b.warnings, straight: s}
	ready := false
	defer func() {
		if !ready {
			p.abandon()
		}
	}()
	_, step := trace.Start(ctx, "executor clone")
	err = e.clone(p, b, processImage{files: s.files, exec: exe, namespaces: namespaces})
	step.End(&err)
	s.files = nil
	theirs.Close()
	if err != nil {
		return nil, err
	}
	ctx, step = trace.Start(ctx, "executor set-up")
	defer step.End(&err)
	if b.traced {
		at.step, at.begin = step, time.Now()
		defer at.end(&err)
	}
	stop := ch.bind(ctx)
	defer stop()
	if s.crosses {
		var u unusual
		if err := s.crossed(ctx, b, p, ch); errors.As(err, &u) {
			e.unusual(ctx, id, u.Error())
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	for {
		msg, fd, err := ch.receive()
		switch {
		case err == io.EOF:
			e.unusual(ctx, id, "it ended") // by the container perhaps
			return nil, nil
		case err != nil:
			return nil, contextual(ctx, err)
		case msg[0] == plan.MsgConsole && fd >= 0 && p.console == nil:
			p.console = os.NewFile(uintptr(fd), "console")
		case msg[0] == plan.MsgReady:
			if what := s.unusual(msg[1:]); what != "" {
				e.unusual(ctx, id, what)
				return nil, nil
			}
			for i, told := range s.clocks { // struct timespec
				at.at[i] = *(*int64)(unsafe.Pointer(&msg[1+told]))*1e9 + *(*int64)(unsafe.Pointer(&msg[9+told]))
			}
			p.warnings = append(p.warnings, s.warnings...)
			if err := b.schedule(p); err != nil {
				return nil, err
			}
			if err := b.release(ctx, p, ch, s.word()); err != nil {
				return nil, err
			}
			e.warn(ctx, p)
			ready = true
			return p, nil
		default:
			e.unusual(ctx, id, s.said(msg))
			return nil, nil
		}
	}
}

const doneOver = "a start is done over by orlop-init"

// unusual notes why orlop-init takes its turn.
func (e *Executor) unusual(ctx context.Context, id, what string) {
	e.log.DebugContext(ctx, doneOver, "container", id, "why", what)
}

// unusual looks at what the program has found, and says what is not as usual, "" where all is.
func (s *straight) unusual(said []byte) string {
	if len(said) != s.size {
		return "what it tells has not the right length"
	}
	for _, c := range s.checks {
		if !c.usual(said) {
			return "found at: " + plan.Names[c.code]
		}
	}
	return ""
}

// said tells of a message before the gate.
func (s *straight) said(msg []byte) string {
	call, errno, ok := tiny.Failed(msg)
	if !ok || call >= len(s.codes) {
		return "a message that is not known"
	}
	return plan.Names[s.codes[call]] + ": " + unix.Errno(errno).Error()
}
