package server

import (
	"context"
	"os"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

// opHold sends the client second descriptors of everything, and from now on of
// whatever is added.
func (s *Server) opHold(_ context.Context, c *client, _ *wire.Frame) (any, []*os.File, error) {
	s.mu.Lock()
	c.hold = true
	all := make([]*container, 0, len(s.containers))
	for _, ct := range s.containers {
		all = append(all, ct)
	}
	s.mu.Unlock()
	for _, ct := range all {
		s.holdBy(ct, []*client{c})
	}
	// Nobody has brought more: what ended unseen stays unknown.
	for _, ct := range all {
		ct.settle()
	}
	return nil, nil, nil
}

func (s *Server) hold(c *container) {
	if clients := s.listening(func(c *client) bool { return c.hold }); len(clients) > 0 {
		s.holdBy(c, clients)
	}
}

func (s *Server) holdBy(c *container, clients []*client) {
	h := keeper.Held{ID: c.id()}
	f := &wire.Frame{Op: "held"}
	c.mu.Lock()
	c.out.mu.Lock()
	if c.rec.Status.Exit == nil && c.pidfd != nil {
		for _, d := range []struct {
			what string
			file *os.File
		}{{"p", c.pidfd}, {"i", c.stdin}, {"o", c.out.fifos[0]}, {"e", c.out.fifos[1]}, {"t", c.out.terminal}} {
			if d.file != nil {
				h.What, f.Files = h.What+d.what, append(f.Files, d.file)
			}
		}
	}
	if err := f.Encode(h); err == nil && h.What != "" {
		for _, cl := range clients {
			if err := cl.conn.Send(f); err != nil {
				s.log.Debug("a client did not take what it should hold", "error", err)
			}
		}
	}
	c.out.mu.Unlock()
	c.mu.Unlock()
}

// unhold tells clients to close what they hold of the container.
func (s *Server) unhold(id string) {
	f := &wire.Frame{Op: "held"}
	if f.Encode(keeper.Held{ID: id}) != nil {
		return
	}
	for _, cl := range s.listening(func(c *client) bool { return c.hold }) {
		cl.conn.Send(f)
	}
}

// opAdopt takes descriptors that a client held for an earlier keeper.
func (s *Server) opAdopt(_ context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var h keeper.Held
	if err := f.Decode(&h); err != nil {
		return nil, nil, err
	}
	if len(h.What) != len(f.Files) {
		return nil, nil, errs.New(errs.Invalid, "adopt: %d descriptors for %q", len(f.Files), h.What)
	}
	c, err := s.find(h.ID)
	if err != nil {
		return nil, nil, nil // removed meanwhile; the client learns by List
	}
	for i, what := range h.What {
		switch what {
		case 't':
			if err := c.adoptTerminal(f.Files[i]); err != nil {
				return nil, nil, err
			}
		}
	}
	for i, what := range h.What {
		if what == 'p' {
			c.adoptPIDFD(f.Files[i])
		}
	}
	return nil, nil, nil
}

// adoptTerminal goes on reading a terminal whose master the client kept open.
func (c *container) adoptTerminal(f *os.File) error {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ended || c.out.terminal != nil || !c.rec.Terminal {
		return nil
	}
	t, err := duplicate(f)
	if err != nil {
		return err
	}
	c.out.terminal = t
	c.out.log.write(0, false)
	return c.out.armTerminal()
}

// adoptPIDFD reads the exit code of a container that ended while no keeper lived.
func (c *container) adoptPIDFD(f *os.File) {
	c.mu.Lock()
	unknown := c.unknown
	c.mu.Unlock()
	if unknown {
		c.finish(exitInfo(f))
	}
}

// settle ends the wait for the exit code of a container that ended unseen.
func (c *container) settle() {
	c.mu.Lock()
	unknown := c.unknown
	c.mu.Unlock()
	if unknown {
		c.finish(keeper.Exit{Code: 255})
	}
}
