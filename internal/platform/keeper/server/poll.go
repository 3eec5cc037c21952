package server

import (
	"sync"

	"golang.org/x/sys/unix"
)

// poller waits for many descriptors with one goroutine and no buffers, so that an
// idle container costs neither. Every watch is one-shot: its function runs in a
// goroutine of its own and arms it again when it is ready for more.
//
// Events carry a number that is never used twice, not the descriptor: one that was
// fetched just before its descriptor was closed finds nobody, whoever has the
// descriptor's number by then.
type poller struct {
	fd int

	mu     sync.Mutex
	next   uint64
	byFD   map[int]*watch
	byName map[uint64]*watch
}

type watch struct {
	name uint64
	fn   func(events uint32)
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return &poller{fd: fd, byFD: make(map[int]*watch), byName: make(map[uint64]*watch)}, nil
}

// watch runs fn once when one of events (or an error, or a hang-up) is there.
func (p *poller) watch(fd int, events uint32, fn func(events uint32)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.byFD[fd]
	op := unix.EPOLL_CTL_MOD
	if w == nil {
		p.next++
		w = &watch{name: p.next}
		op = unix.EPOLL_CTL_ADD
	}
	w.fn = fn
	ev := unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(w.name), Pad: int32(w.name >> 32)}
	if err := unix.EpollCtl(p.fd, op, fd, &ev); err != nil {
		delete(p.byFD, fd)
		delete(p.byName, w.name)
		return err
	}
	p.byFD[fd], p.byName[w.name] = w, w
	return nil
}

// forget ends the watch, if there is one. It must come before the descriptor is closed.
func (p *poller) forget(fd int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.byFD[fd]
	if w == nil {
		return
	}
	delete(p.byFD, fd)
	delete(p.byName, w.name)
	unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil)
}

// run dispatches events for ever.
func (p *poller) run() {
	evs := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(p.fd, evs, -1)
		if err != nil && err != unix.EINTR {
			panic("keeper: epoll_wait: " + err.Error()) // nothing would be noticed any more
		}
		for _, ev := range evs[:max(0, n)] {
			p.mu.Lock()
			var fn func(uint32)
			if w := p.byName[uint64(uint32(ev.Fd))|uint64(uint32(ev.Pad))<<32]; w != nil {
				fn = w.fn
			}
			p.mu.Unlock()
			if fn != nil {
				go fn(ev.Events)
			}
		}
	}
}
