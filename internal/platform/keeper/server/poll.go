package server

import (
	"sync"

	"golang.org/x/sys/unix"
)

// poller waits for many descriptors with one goroutine and no buffers, so that an
// idle container costs neither. Every watch is one-shot: its function runs in a
// goroutine of its own and arms it again when it is ready for more.
type poller struct {
	fd int

	mu  sync.Mutex
	fns map[int32]func(events uint32)
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &poller{fd: fd, fns: make(map[int32]func(uint32))}, nil
}

// watch runs fn once when one of events (or an error, or a hang-up) is there.
func (p *poller) watch(fd int, events uint32, fn func(events uint32)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, known := p.fns[int32(fd)]
	op := unix.EPOLL_CTL_ADD
	if known {
		op = unix.EPOLL_CTL_MOD
	}
	p.fns[int32(fd)] = fn
	ev := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(fd)}
	err := unix.EpollCtl(p.fd, op, fd, &ev)
	if err == unix.ENOENT && known { // closed, and the number taken again
		err = unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev)
	}
	if err != nil {
		delete(p.fns, int32(fd))
	}
	return err
}

// forget ends the watch. It must come before the descriptor is closed.
func (p *poller) forget(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.fns, int32(fd))
	unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil)
}

// run dispatches events for ever.
func (p *poller) run() {
	evs := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.fd, evs, -1)
		if err != nil && err != unix.EINTR {
			return
		}
		for _, ev := range evs[:max(0, n)] {
			p.mu.Lock()
			fn := p.fns[ev.Fd]
			p.mu.Unlock()
			if fn != nil {
				go fn(ev.Events)
			}
		}
	}
}
