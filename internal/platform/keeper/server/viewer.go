package server

import (
	"os"

	"golang.org/x/sys/unix"
)

// viewer is one stream of somebody attached. It reads the stage, where the output lies
// anyway, at its own pace; the stage keeps what it has not read, up to backlog.
type viewer struct {
	file   *os.File // write end, non-blocking
	stream int
	at     int64 // read of the stage
	shown  bool  // something waits for the write end to have room
}

// backlog is how many bytes behind a viewer may be before it is dropped: the container
// never waits for it.
const backlog = 1 << 20

// drainTimeout is how long those attached may take for the last bytes of a container
// that has ended, per write, in milliseconds.
const drainTimeout = 5000

// attach adds a write end for a stream (0 or 1); it becomes the output's.
func (o *output) attach(f *os.File, stream int) error {
	if err := unix.SetNonblock(int(f.Fd()), true); err != nil {
		f.Close()
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended || o.log == nil {
		f.Close()
		return nil
	}
	v := &viewer{file: f, stream: stream, at: o.log.ends[stream]}
	o.viewers = append(o.viewers, v)
	return o.watchViewer(v, 0)
}

// watchViewer waits for the other end to be closed and, with EPOLLOUT, for room.
func (o *output) watchViewer(v *viewer, events uint32) error {
	v.shown = events != 0
	err := o.poll.watch(int(v.file.Fd()), events, func(ev uint32) {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.ended {
			return
		}
		if ev&(unix.EPOLLERR|unix.EPOLLHUP) != 0 || !v.push(o) {
			o.drop(v)
		}
	})
	if err == unix.EPERM { // a file: it always has room, and is never closed
		return nil
	}
	if err != nil {
		o.drop(v)
	}
	return err
}

// show gives those attached what is new in the stage.
func (o *output) show(i int) {
	for n := 0; n < len(o.viewers); {
		v := o.viewers[n]
		if v.stream == i && !v.shown && !v.push(o) || o.log.ends[v.stream]-v.at > backlog {
			o.drop(v)
			continue
		}
		n++
	}
}

// push writes what there is room for, and arms for more. It tells whether the viewer
// stays.
func (v *viewer) push(o *output) bool {
	for v.at < o.log.ends[v.stream] {
		n, err := v.some(o.log)
		if err == unix.EAGAIN {
			return o.watchViewer(v, unix.EPOLLOUT) == nil
		}
		if err != nil && err != unix.EINTR {
			return false
		}
		v.at += int64(n)
	}
	return o.watchViewer(v, 0) == nil
}

// some writes a part of the stage.
func (v *viewer) some(l *criLog) (int, error) {
	buf := buffers.Get().(*buffer)
	defer buffers.Put(buf)
	n, err := l.stages[v.stream].ReadAt(buf.in[:min(int64(len(buf.in)), l.ends[v.stream]-v.at)], v.at)
	if n == 0 {
		return 0, err
	}
	return unix.Write(int(v.file.Fd()), buf.in[:n])
}

func (v *viewer) close(o *output) {
	o.poll.forget(int(v.file.Fd()))
	v.file.Close()
}

func (o *output) drop(v *viewer) {
	for n, other := range o.viewers {
		if other == v {
			o.viewers = append(o.viewers[:n], o.viewers[n+1:]...)
			v.close(o)
			return
		}
	}
}

// drainTo gives the viewer the last bytes of an output that ends, in a goroutine of its
// own if that takes long.
func (v *viewer) drainTo(o *output) {
	o.poll.forget(int(v.file.Fd()))
	if o.log.stages[v.stream] == nil || v.at >= o.log.ends[v.stream] {
		v.file.Close()
		return
	}
	stage, err := duplicate(o.log.stages[v.stream])
	if err != nil {
		v.file.Close()
		return
	}
	last := &criLog{ends: o.log.ends}
	last.stages[v.stream] = stage
	go func() {
		defer stage.Close()
		defer v.file.Close()
		for v.at < last.ends[v.stream] {
			n, err := v.some(last)
			switch err {
			case nil:
				v.at += int64(n)
			case unix.EINTR:
			case unix.EAGAIN:
				p := []unix.PollFd{{Fd: int32(v.file.Fd()), Events: unix.POLLOUT}}
				if ready, err := unix.Poll(p, drainTimeout); ready == 0 && err == nil {
					return
				}
			default:
				return
			}
		}
	}()
}
