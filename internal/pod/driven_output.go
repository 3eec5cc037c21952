package pod

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

const (
	// ownOutput is what is kept of any command's output, whatever others have.
	ownOutput = 16 << 10
	// outputStep is how much is taken at a time of what all share.
	outputStep = 256 << 10
	// sharedOutput is what all commands that run at a time may have kept beyond that.
	sharedOutput = 32 << 20
)

// Output is what a command has written, up to a limit, and how it ended. Free it once it
// has been told.
type Output struct {
	Stdout, Stderr []byte
	Code           int
	DroppedBytes   int64 // what was written beyond the limit

	free func()
}

// Free lets other commands' output have its place.
func (o *Output) Free() {
	if o.free != nil {
		o.free()
	}
}

// Run runs a command to its end. When ctx ends first the command is killed and the error
// is ctx's. Of both streams together at most limit bytes are kept, and less where other
// commands' output takes the place that all share; the rest is read and dropped, so that
// the command is not held up.
func (d *Driven) Run(ctx context.Context, id ContainerID, command []string, limit int64) (Output, error) {
	var out Output
	s, err := d.Exec(ctx, id, ExecOptions{Command: command})
	if err != nil {
		return out, err
	}
	defer s.Close()
	kept := &capture{limit: limit, shared: &d.spareOutput}
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(stream{kept, &kept.stdout}, s.Stdout) })
	wg.Go(func() { io.Copy(stream{kept, &kept.stderr}, s.Stderr) })
	code, _, err := s.Wait(ctx)
	if err != nil {
		s.Kill()
		s.Close()
		wg.Wait()
		kept.free()
		return out, err
	}
	s.Drain(wg.Wait)
	return Output{Stdout: kept.stdout, Stderr: kept.stderr, Code: code, DroppedBytes: kept.dropped, free: kept.free}, nil
}

// capture keeps the first bytes of a command's two streams.
type capture struct {
	limit  int64
	shared *atomic.Int64 // what may yet be taken

	mu             sync.Mutex
	stdout, stderr []byte
	taken          int64 // of shared
	dropped        int64
}

// room returns how many of n more bytes may be kept. It is called with mu held.
func (c *capture) room(n int64) int64 {
	kept := int64(len(c.stdout) + len(c.stderr))
	n = min(n, c.limit-kept)
	for kept+n > ownOutput+c.taken {
		if c.shared.Add(-outputStep) < 0 {
			c.shared.Add(outputStep)
			return min(n, ownOutput+c.taken-kept)
		}
		c.taken += outputStep
	}
	return n
}

func (c *capture) free() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.shared.Add(c.taken)
	c.taken = 0
}

// stream is one of the two as something to write to.
type stream struct {
	c  *capture
	to *[]byte
}

func (s stream) Write(b []byte) (int, error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	room := s.c.room(int64(len(b)))
	if need := len(*s.to) + int(room); need > cap(*s.to) {
		// Doubled: append's own steps would leave several times as much as garbage.
		*s.to = append(make([]byte, 0, max(need, min(2*cap(*s.to), int(s.c.limit)))), *s.to...)
	}
	*s.to = append(*s.to, b[:room]...)
	s.c.dropped += int64(len(b)) - room
	return len(b), nil
}
