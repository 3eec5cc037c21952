package server

import (
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// output is what a container writes: two FIFOs, or one terminal, into a log and to
// those who are attached.
//
// A terminal is moved into the first FIFO, which the container has not got, and goes on
// from there as other output does: whoever holds the terminal's master for us holds that
// FIFO too, so a kill loses neither.
type output struct {
	poll *poller

	mu       sync.Mutex // guards all below, and the log
	fifos    [2]*os.File
	terminal *os.File // master
	peer     *os.File // a slave, so that the master never hangs up while the container lives
	log      *criLog
	viewers  []*viewer
	ended    bool
}

// start begins to read, or goes on with it in another keeper.
func (o *output) start(again bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if again && o.log != nil {
		o.log.begin()
	}
	for i := range o.fifos {
		if o.fifos[i] == nil {
			continue
		}
		// What an earlier keeper staged and did not log comes first.
		o.drain(i)
		if o.terminal == nil {
			if err := o.arm(i); err != nil {
				return err
			}
		}
	}
	if o.terminal != nil {
		return o.armTerminal()
	}
	return nil
}

// begin makes the log's file.
func (o *output) begin() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.log.begin()
	}
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
		o.log.fail(err, 0)
	}
}

// drain reads until the FIFO is empty, but not for ever: a writer that is faster
// than the log lets others have their turn in between.
func (o *output) drain(i int) {
	step := int64(punchStep)
	for range 16 {
		n, err := o.log.fill(i, o.fifos[i])
		if err != nil {
			o.log.fail(err, 0)
			if !o.log.direct(i, o.fifos[i]) {
				break
			}
			continue
		}
		if o.log.pos.stage[i] < o.log.ends[i] {
			o.show(i)
			o.log.write(i, false)
		}
		if n == 0 {
			step = punchIdle
			break
		}
		o.log.release(i, o.read(i), punchStep)
	}
	o.log.release(i, o.read(i), step)
}

// openPeer opens the other side of the terminal (ioctl_tty(2), TIOCGPTPEER). Without it
// the master would say that it is hung up when the container closes its last slave, and
// go on saying so when it opens another.
func (o *output) openPeer() {
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, o.terminal.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno == 0 {
		o.peer = os.NewFile(fd, "terminal")
	}
}

func (o *output) armTerminal() error {
	return o.poll.watch(int(o.terminal.Fd()), unix.EPOLLIN, func(uint32) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.ended || o.terminal == nil {
			return
		}
		if o.readTerminal() {
			if err := o.armTerminal(); err != nil {
				o.log.fail(err, 0)
			}
		}
	})
}

// readTerminal moves what the terminal has and tells whether it may have more later.
func (o *output) readTerminal() bool {
	for range 16 {
		// The other holder of the master may have made it blocking: ask first.
		if ev := poll(o.terminal); ev&unix.POLLIN == 0 {
			return ev&(unix.POLLHUP|unix.POLLERR) == 0
		}
		n, err := unix.Splice(int(o.terminal.Fd()), nil, int(o.fifos[0].Fd()), nil, 32<<10, unix.SPLICE_F_NONBLOCK)
		if err == unix.EINVAL { // before Linux 6.5: through memory, where a kill loses it
			buf := buffers.Get().(*buffer)
			var m int
			if m, err = unix.Read(int(o.terminal.Fd()), buf.in[:32<<10]); m > 0 {
				m, err = unix.Write(int(o.fifos[0].Fd()), buf.in[:m])
			}
			n = int64(m)
			buffers.Put(buf)
		}
		if n <= 0 {
			return err == unix.EAGAIN || err == unix.EINTR // EIO: every slave is closed
		}
		o.drain(0)
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
	}
	if o.log != nil {
		o.log.begin()
		for i := range o.fifos {
			if o.fifos[i] != nil {
				o.drain(i)
			}
			if o.log.stages[i] != nil {
				o.log.write(i, true)
			}
		}
	}
	for _, v := range o.viewers {
		v.drainTo(o)
	}
	o.viewers = nil
	o.end()
}

// end closes everything. It is called with mu held.
func (o *output) end() {
	o.ended = true
	for _, f := range []**os.File{&o.fifos[0], &o.fifos[1], &o.terminal, &o.peer} {
		if *f != nil {
			o.poll.forget(int((*f).Fd()))
			(*f).Close()
			*f = nil
		}
	}
	for _, v := range o.viewers {
		v.close(o)
	}
	o.viewers = nil
	if o.log != nil {
		o.log.close()
	}
}

// abandon closes everything without another byte: the container was never started.
func (o *output) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.end()
	}
}

// read tells how far those attached have read a stream.
func (o *output) read(i int) int64 {
	least := int64(math.MaxInt64)
	for _, v := range o.viewers {
		if v.stream == i {
			least = min(least, v.at)
		}
	}
	return least
}
