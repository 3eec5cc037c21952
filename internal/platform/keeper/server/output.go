package server

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// bufs are shared by all streams: one is taken only while there is something to read.
var bufs = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// output is what a container writes: two FIFOs, or one terminal, into a log and to
// those who are attached.
type output struct {
	poll *poller

	mu       sync.Mutex // guards all below, and the log
	fifos    [2]*os.File
	terminal *os.File
	log      *criLog
	attached []*os.File // write ends, non-blocking
	streams  []string   // beside attached: which streams each wants
	seen     [2]int64   // of the stage, by those attached
	ended    bool
}

// start begins to read.
func (o *output) start() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.terminal != nil {
		return o.armTerminal()
	}
	for i := range o.fifos {
		// What an earlier keeper staged and did not log comes first.
		o.log.write(i, false)
		_, o.seen[i], _ = o.log.staged(i)
		if err := o.arm(i); err != nil {
			return err
		}
	}
	return nil
}

func (o *output) arm(i int) error {
	return o.poll.watch(int(o.fifos[i].Fd()), unix.EPOLLIN, func(uint32) { o.pump(i) })
}

// pump moves all that a FIFO has into the log.
func (o *output) pump(i int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	o.drain(i)
	if err := o.arm(i); err != nil {
		o.log.fail(err)
	}
}

// drain reads until the FIFO is empty, but not for ever: a writer that is faster
// than the log lets others have their turn in between.
func (o *output) drain(i int) {
	for range 16 {
		n, err := o.log.fill(i, o.fifos[i])
		if err != nil {
			o.log.fail(err)
			return
		}
		if n == 0 {
			return
		}
		o.tee(i)
		o.log.write(i, false)
	}
}

// tee gives those attached what is new in the stage.
func (o *output) tee(i int) {
	_, to, err := o.log.staged(i)
	if err != nil {
		return
	}
	if len(o.attached) > 0 {
		buf := bufs.Get().(*[]byte)
		for o.seen[i] < to {
			n, err := o.log.stages[i].ReadAt((*buf)[:min(int64(len(*buf)), to-o.seen[i])], o.seen[i])
			if n == 0 || err != nil && n == 0 {
				break
			}
			o.seen[i] += int64(n)
			o.send(i, (*buf)[:n])
		}
		bufs.Put(buf)
	}
	o.seen[i] = to
}

// send writes to those who want the stream; one that is gone, or too slow, is dropped.
func (o *output) send(i int, b []byte) {
	kept, streams := o.attached[:0], o.streams[:0]
	for n, f := range o.attached {
		if o.streams[n] == "oe"[i:i+1] {
			if w, err := unix.Write(int(f.Fd()), b); err != nil || w < len(b) {
				f.Close()
				continue
			}
		}
		kept, streams = append(kept, f), append(streams, o.streams[n])
	}
	o.attached, o.streams = kept, streams
}

// attach adds a write end for a stream ("o" or "e"); it becomes the output's.
func (o *output) attach(f *os.File, stream string) error {
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		f.Close()
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		f.Close()
		return nil
	}
	o.attached, o.streams = append(o.attached, f), append(o.streams, stream)
	return nil
}

func (o *output) armTerminal() error {
	return o.poll.watch(int(o.terminal.Fd()), unix.EPOLLIN, func(uint32) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.ended {
			return
		}
		if o.readTerminal() {
			o.armTerminal()
		}
	})
}

// readTerminal reads what the terminal has and tells whether it may have more later.
// A terminal cannot be spliced: bytes go through memory here, and a kill between
// read and write loses those few.
func (o *output) readTerminal() bool {
	buf := bufs.Get().(*[]byte)
	defer bufs.Put(buf)
	for range 16 {
		// The other holder of the master may have made it blocking: ask first.
		ready := []unix.PollFd{{Fd: int32(o.terminal.Fd()), Events: unix.POLLIN}}
		if n, err := unix.Poll(ready, 0); err == nil && n == 0 {
			return true
		}
		n, err := unix.Read(int(o.terminal.Fd()), *buf)
		if n > 0 {
			if _, werr := o.log.stages[0].Seek(0, 2); werr == nil {
				o.log.stages[0].Write((*buf)[:n])
			}
			o.send(0, (*buf)[:n])
			o.log.write(0, false)
			continue
		}
		return err == unix.EAGAIN || err == unix.EINTR // EIO: every slave is closed
	}
	return true
}

// finish takes the last bytes after the container has ended.
func (o *output) finish() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return
	}
	if o.terminal != nil {
		o.readTerminal()
		o.log.write(0, true)
	} else {
		for i := range o.fifos {
			if o.fifos[i] != nil {
				o.drain(i)
			}
			o.log.write(i, true)
		}
	}
	o.end()
}

// end closes everything. It is called with mu held.
func (o *output) end() {
	o.ended = true
	for i, f := range o.fifos {
		if f != nil {
			o.poll.forget(int(f.Fd()))
			f.Close()
			o.fifos[i] = nil
		}
	}
	if o.terminal != nil {
		o.poll.forget(int(o.terminal.Fd()))
		o.terminal.Close()
		o.terminal = nil
	}
	for _, f := range o.attached {
		f.Close()
	}
	o.attached, o.streams = nil, nil
	if o.log != nil {
		o.log.close()
	}
}

// abandon closes everything without another byte: the container was never started,
// or the keeper is about to become another binary.
func (o *output) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.end()
	}
}
