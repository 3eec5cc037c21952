package image

import (
	"errors"
	"io"
	"sync"
)

// pipe carries a stream between two goroutines in large chunks, so that the stages
// of a pull (network, decompression, files) overlap: one goroutine fills it from a
// reader, the other reads it. Unlike io.Pipe it buffers, and hands over whole
// chunks.
type pipe struct {
	full    chan []byte
	free    chan []byte
	stop    chan struct{} // closed by the reading side
	stopped sync.Once
	err     error  // why full was closed, set before; io.EOF at the regular end
	cur     []byte // being read
	whole   []byte // cur's buffer
}

const (
	chunkSize = 256 << 10
	chunks    = 6
)

var chunkPool = sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}

func newPipe() *pipe {
	p := &pipe{full: make(chan []byte, chunks), free: make(chan []byte, chunks), stop: make(chan struct{})}
	for range chunks {
		p.free <- *chunkPool.Get().(*[]byte)
	}
	return p
}

var errPipeStopped = errors.New("the reader has stopped")

// fill reads r to its end, calls each with every chunk and hands it on. An error
// of each or r is what the reader sees, too.
func (p *pipe) fill(r io.Reader, each func([]byte) error) error {
	err := p.copy(r, each)
	p.err = err
	if err == nil {
		p.err = io.EOF
	}
	close(p.full)
	return err
}

func (p *pipe) copy(r io.Reader, each func([]byte) error) error {
	for {
		var buf []byte
		select {
		case buf = <-p.free:
		case <-p.stop:
			return errPipeStopped
		}
		buf, rerr := buf[:chunkSize], error(nil)
		n := 0
		for idle := 0; n < len(buf) && rerr == nil; {
			var m int
			m, rerr = r.Read(buf[n:])
			if n += m; m > 0 {
				idle = 0
			} else if idle++; idle > 100 && rerr == nil {
				rerr = io.ErrNoProgress
			}
		}
		if n > 0 {
			if err := each(buf[:n]); err != nil {
				return err
			}
			select {
			case p.full <- buf[:n]:
			case <-p.stop:
				return errPipeStopped
			}
		}
		if rerr == io.EOF {
			return nil
		}
		if rerr != nil {
			return rerr
		}
	}
}

// Read implements io.Reader for the reading side.
func (p *pipe) Read(b []byte) (int, error) {
	for len(p.cur) == 0 {
		if p.whole != nil {
			p.free <- p.whole // has room for all
			p.whole = nil
		}
		buf, ok := <-p.full
		if !ok {
			return 0, p.err
		}
		p.cur, p.whole = buf, buf
	}
	n := copy(b, p.cur)
	p.cur = p.cur[n:]
	return n, nil
}

// recycle gives the buffers back. Both sides must have ended.
func (p *pipe) recycle() {
	for {
		select {
		case b := <-p.free:
			b = b[:chunkSize]
			chunkPool.Put(&b)
		default:
			return
		}
	}
}

// close tells the filling side that nobody reads any more. It does not wait.
func (p *pipe) close() { p.stopped.Do(func() { close(p.stop) }) }
