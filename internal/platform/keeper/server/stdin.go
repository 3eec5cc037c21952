package server

import (
	"context"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func (s *Server) opStdin(_ context.Context, _ *client, f *frame) (any, []*os.File, error) {
	var r keeper.IDRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	open, once, terminal := c.stdin != nil, c.rec.StdinOnce, c.rec.Terminal
	c.mu.Unlock()
	if terminal {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		if c.out.terminal == nil {
			return nil, nil, errs.New(errs.FailedPrecondition, "container %s has ended, and its terminal with it", r.ID)
		}
		dup, err := duplicate(c.out.terminal)
		if err != nil {
			return nil, nil, err
		}
		return nil, []*os.File{dup}, nil
	}
	if !open {
		return nil, nil, errs.New(errs.FailedPrecondition, "container %s has no open standard input (stdin: true in its manifest gives it one)", r.ID)
	}
	w, err := openFIFO(filepath.Join(c.dir, "stdin"), unix.O_WRONLY)
	if err != nil {
		return nil, nil, err
	}
	if once { // the end of this writer is the end of the input
		if err := c.endStdin(); err != nil {
			w.Close()
			return nil, nil, err
		}
	}
	return nil, []*os.File{w}, nil
}

func (s *Server) closeStdin(_ context.Context, r keeper.IDRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	once, has, ended := c.rec.StdinOnce, c.rec.Stdin, c.rec.Status.State == keeper.Stopped
	c.mu.Unlock()
	if !has || ended {
		return nil, nil
	}
	if !once {
		return nil, errs.New(errs.FailedPrecondition, "container %s keeps its standard input open as long as it runs (stdinOnce: true in its manifest ends it with its first writer)", r.ID)
	}
	return nil, c.endStdin()
}

// endStdin closes our end, and has those who hold the FIFO for us close theirs.
func (c *container) endStdin() error {
	c.mu.Lock()
	c.rec.Stdin = false // a restart must not open it again
	err := c.save()
	faultStdinClosed.Hit()
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	c.mu.Unlock()
	c.s.hold(c)
	return err
}
