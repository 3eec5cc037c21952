package executor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// maxMessage is how long a message of the child is at most.
const maxMessage = 32 << 10

// channel is the parent's end of the socket to the child. Waiting on it takes no thread,
// and ends with the context that bind was given.
type channel struct{ file *os.File }

// newChannel makes a pair of connected sockets: the parent's end, and the child's.
func newChannel() (*channel, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, err
	}
	return &channel{os.NewFile(uintptr(fds[0]), "init")}, os.NewFile(uintptr(fds[1]), "parent"), nil
}

func (c *channel) close() { c.file.Close() }

// bind makes what waits on the channel end when ctx does, until stop is called.
func (c *channel) bind(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(ctx, func() { c.file.SetDeadline(time.Unix(1, 0)) })
}

// sendPlan sends a plan as package plan says.
func (c *channel) sendPlan(b []byte) error {
	var head [8]byte
	binary.LittleEndian.PutUint64(head[:], uint64(len(b)))
	if _, err := c.file.Write(head[:]); err != nil {
		return err
	}
	for len(b) > 0 {
		n := min(len(b), plan.Chunk)
		if _, err := c.file.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// unbind makes waiting possible again after the context's end.
func (c *channel) unbind() error { return c.file.SetDeadline(time.Time{}) }

// receive returns the child's next message, and the descriptor that came with it, -1
// where there is none. At the end of the stream it returns io.EOF.
func (c *channel) receive() (msg []byte, fd int, err error) {
	msg, oob, err := c.recvmsg(unix.CmsgSpace(4))
	fd = -1
	if len(oob) > 0 {
		if ms, err := unix.ParseSocketControlMessage(oob); err == nil && len(ms) == 1 {
			if fds, err := unix.ParseUnixRights(&ms[0]); err == nil && len(fds) == 1 {
				fd = fds[0]
			}
		}
	}
	return msg, fd, err
}

// identify makes messages come with who sent them.
func (c *channel) identify(on bool) error {
	rc, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	if e := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, int(flag(on)))
	}); e != nil {
		return e
	}
	return err
}

// receiveFrom returns the next message and the id of the process that sent it.
func (c *channel) receiveFrom() (msg []byte, pid int, err error) {
	msg, oob, err := c.recvmsg(unix.CmsgSpace(unix.SizeofUcred))
	if err != nil {
		return nil, 0, err
	}
	ms, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(ms) != 1 {
		return nil, 0, errs.New(errs.Internal, "a message does not say who sent it")
	}
	who, err := unix.ParseUnixCredentials(&ms[0])
	if err != nil {
		return nil, 0, err
	}
	return msg, int(who.Pid), nil
}

func (c *channel) recvmsg(space int) (msg, control []byte, err error) {
	rc, err := c.file.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	buf, oob := make([]byte, maxMessage), make([]byte, space)
	var n, oobn int
	if e := rc.Read(func(s uintptr) bool {
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(s), buf, oob, unix.MSG_CMSG_CLOEXEC)
			if err != unix.EINTR {
				return err != unix.EAGAIN
			}
		}
	}); e != nil {
		return nil, nil, e
	}
	if err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF // it ended with something unread
		}
		return nil, nil, err
	}
	if n == 0 {
		err = io.EOF
	}
	return buf[:n], oob[:oobn], err
}
