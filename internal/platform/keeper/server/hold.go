package server

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// heldKinds are the letters of keeper.Held: pidfd, FIFOs of stdin, stdout and stderr,
// terminal.
const heldKinds = "pioet"

// opHold sends the client second descriptors of everything, and from now on of
// whatever is added.
func (s *Server) opHold(ctx context.Context, c *client, _ *frame) (any, []*os.File, error) {
	s.mu.Lock()
	c.hold = true
	all := make([]*container, 0, len(s.containers))
	for _, ct := range s.containers {
		all = append(all, ct)
	}
	s.mu.Unlock()
	for _, ct := range all {
		s.holdBy(ct, func(other *client) bool { return other == c })
		// Nobody has brought more: what ended unseen stays unknown.
		if err := s.endUnseen(ctx, ct, keeper.Exit{Code: 255, At: time.Now()}); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

func (s *Server) hold(c *container) {
	s.holdBy(c, func(cl *client) bool { return cl.hold })
}

func (s *Server) holdBy(c *container, who func(*client) bool) {
	c.held.Lock()
	defer c.held.Unlock()
	clients := s.listening(who)
	if len(clients) == 0 {
		return
	}
	for _, cl := range clients {
		h := keeper.Held{ID: c.id}
		f := &frame{Op: "held"}
		add := func(what string, file *os.File) {
			if file == nil {
				return
			}
			dup, err := duplicate(file)
			if err != nil {
				c.warn("a second descriptor could not be given away", "error", err)
				return
			}
			h.What, f.Files = h.What+what, append(f.Files, dup)
		}
		c.mu.Lock()
		if c.rec.Status.Exit == nil && c.pidfd != nil {
			add("p", c.pidfd)
			add("i", c.stdin)
		}
		c.mu.Unlock()
		if h.What == "" {
			return
		}
		c.out.mu.Lock()
		add("o", c.out.fifos[0])
		add("e", c.out.fifos[1])
		add("t", c.out.terminal)
		c.out.mu.Unlock()
		if f.Encode(h) == nil {
			cl.push(f)
		}
	}
}

// unhold tells clients to close what they hold of the container.
func (s *Server) unhold(c *container) {
	c.held.Lock()
	defer c.held.Unlock()
	for _, cl := range s.listening(func(cl *client) bool { return cl.hold }) {
		f := &frame{Op: "held"}
		if f.Encode(keeper.Held{ID: c.id}) == nil {
			cl.push(f)
		}
	}
}

// opAdopt takes descriptors that a client held for an earlier keeper. The FIFOs among
// them need not be taken: they were opened again by their names, and the client has kept
// what is in them.
func (s *Server) opAdopt(ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
	var h keeper.Held
	if err := f.Decode(&h); err != nil {
		return nil, nil, err
	}
	if err := wanted("adopt", h.What, heldKinds, f.Files); err != nil {
		return nil, nil, err
	}
	c, err := s.find(h.ID)
	if err != nil {
		return nil, nil, nil // removed meanwhile; the client learns by List
	}
	for i, what := range h.What {
		if what == 't' {
			if err := c.adoptTerminal(f.Files[i]); err != nil {
				return nil, nil, err
			}
		}
	}
	for i, what := range h.What {
		if what != 'p' {
			continue
		}
		if end, ok := pidfd.Kept(f.Files[i]); ok {
			if err := s.endUnseen(ctx, c, exitOf(end, true)); err != nil {
				return nil, nil, err
			}
		}
	}
	return nil, nil, nil
}

// adoptTerminal goes on reading a terminal whose master the client kept open.
func (c *container) adoptTerminal(f *os.File) error {
	if _, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCGPTN); err != nil {
		return errs.New(errs.Invalid, "adopt: what is given for the terminal of container %s is no terminal's master: %w", c.id, err)
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ended || c.out.terminal != nil || !c.rec.Terminal || c.out.fifos[0] == nil {
		return nil
	}
	t, err := duplicate(f)
	if err != nil {
		return err
	}
	c.out.terminal = t
	c.out.openPeer()
	c.out.poll.forget(int(c.out.fifos[0].Fd()))
	return c.out.armTerminal()
}

// endUnseen records the end of a container that ended while no keeper lived, and of which
// that was all that could be known. Of another it does nothing.
func (s *Server) endUnseen(ctx context.Context, c *container, x keeper.Exit) error {
	if !c.isUnknown() {
		return nil
	}
	unlock, err := s.locks.Lock(ctx, c.id)
	if err != nil {
		return err
	}
	defer unlock()
	switch {
	case !c.isUnknown(): // somebody else was faster
	case c.status().State == keeper.Starting:
		return s.conclude(c, false, &x)
	default:
		c.finish(x)
	}
	return nil
}

func (c *container) isUnknown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unknown
}
