// Package idlecopy copies between streams of which most have nothing to say most of the time: one that is
// idle holds no buffer. With io.Copy each of a thousand terminals that nobody types at has 32 KiB.
package idlecopy

import (
	"io"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Bytes is the largest piece that is written at a time.
const Bytes = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, Bytes); return &b }}

// Waiter is a reader that can be waited for.
type Waiter interface {
	// Wait returns when Read need not wait, with or without an error, which Read will have as well.
	Wait() error
}

// Copy copies until src ends or either fails, and returns the bytes that were written; the end of src is no
// error. A src that is a Waiter, a file or a socket is waited for before there is a buffer. Others are read
// with a buffer held.
func Copy(dst io.Writer, src io.Reader) (n int64, err error) {
	wait := func() error { return nil }
	switch s := src.(type) {
	case Waiter:
		wait = s.Wait
	case syscall.Conn:
		wait = func() error { return Wait(s) }
	}
	for {
		wait()
		b := buffers.Get().(*[]byte)
		m, err := src.Read(*b)
		if m > 0 {
			w, werr := dst.Write((*b)[:m])
			n += int64(w)
			if werr != nil {
				err = werr
			}
		}
		buffers.Put(b)
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// Wait waits until a file or socket can be read, has ended or failed, is closed, or its deadline for
// reading has passed. What nobody can be told of, like a file on a disk, is not waited for.
func Wait(c syscall.Conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}
