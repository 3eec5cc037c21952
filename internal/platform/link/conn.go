// Package link speaks rtnetlink(7) in batches: the requests that make a pod's interface
// leave in one system call per namespace, and their answers come back together. What
// is rare (lists, subscriptions) is left to vishvananda/netlink, whose messages this
// package also builds on.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// Conn is a rtnetlink socket. It belongs to the network namespace of the thread that
// opened it, whoever uses it. It is safe for concurrent use: batches are serial.
type Conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

// Dial opens a socket in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind rtnetlink socket: %w", err)
	}
	// The kernel's own words about what it refused (since 4.12); without them there is the errno.
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	// Answers are queued before send returns, so receiving never has to wait; this bounds a
	// kernel that does otherwise.
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30})
	return &Conn{fd: fd, buf: make([]byte, 64<<10)}, nil
}

// DialAt opens a socket in the network namespace at path. A missing one is errs.NotFound.
func DialAt(path string) (c *Conn, err error) {
	err = namespace.Do(path, func() error {
		c, err = Dial()
		return err
	})
	return c, err
}

// Close closes the socket.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	fd := c.fd
	c.fd = -1
	if fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// Request is one message to the kernel, of a constructor in this package.
type Request struct {
	*nl.NetlinkRequest
	what   string
	ignore []syscall.Errno
	answer func(data []byte) // is given every message of the answer
}

// Ignoring makes these errors of the request a success.
func (r Request) Ignoring(errnos ...syscall.Errno) Request {
	r.ignore = append(r.ignore, errnos...)
	return r
}

// Do sends the requests in one message and waits for every answer. The kernel carries out
// each, in order, whatever becomes of those before it. All errors are returned, joined;
// each has the kernel's errno in it.
func (c *Conn) Do(rs ...Request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []byte
	first := c.seq + 1
	for _, r := range rs {
		c.seq++
		r.Seq = c.seq
		r.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_ACK
		out = append(out, r.Serialize()...)
		for len(out)%unix.NLMSG_ALIGNTO != 0 {
			out = append(out, 0)
		}
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to rtnetlink: %w", err)
	}
	var failed []error
	for left := len(rs); left > 0; {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from rtnetlink: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(c.buf[:n])
		if err != nil {
			return fmt.Errorf("parse answer of rtnetlink: %w", err)
		}
		for _, m := range msgs {
			i := int(m.Header.Seq - first)
			if i < 0 || i >= len(rs) {
				continue // of a batch that was given up
			}
			r := rs[i]
			if m.Header.Type != unix.NLMSG_ERROR {
				if r.answer != nil {
					r.answer(m.Data)
				}
				continue
			}
			left--
			if len(m.Data) < 4 {
				return errors.New("short acknowledgement of rtnetlink")
			}
			if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
				if errno := syscall.Errno(-code); !slices.Contains(r.ignore, errno) {
					failed = append(failed, r.failure(errno, m))
				}
			}
		}
	}
	return errors.Join(failed...)
}

// failure makes an error of an acknowledgement (struct nlmsgerr, then attributes).
func (r Request) failure(errno syscall.Errno, m syscall.NetlinkMessage) error {
	var kind *errs.Kind
	switch errno {
	case unix.ENODEV, unix.ESRCH:
		kind = errs.NotFound
	case unix.EEXIST:
		kind = errs.AlreadyExists
	case unix.EPERM:
		kind = errs.PermissionDenied
	case unix.EOPNOTSUPP, unix.EAFNOSUPPORT:
		kind = errs.Unsupported
	default:
		kind = errs.Internal
	}
	const capped, tlvs = 0x100, 0x200 // NLM_F_CAPPED, NLM_F_ACK_TLVS
	if m.Header.Flags&tlvs != 0 {
		off := 4 + unix.SizeofNlMsghdr
		if m.Header.Flags&capped == 0 && len(m.Data) >= off {
			off = 4 + int(binary.NativeEndian.Uint32(m.Data[4:]))
		}
		if off <= len(m.Data) {
			attrs, _ := nl.ParseRouteAttr(m.Data[off:])
			for _, a := range attrs {
				if a.Attr.Type == 1 { // NLMSGERR_ATTR_MSG
					return errs.New(kind, "%s: %w (%s)", r.what, errno, nl.BytesToString(a.Value))
				}
			}
		}
	}
	return errs.New(kind, "%s: %w", r.what, errno)
}

// Info is what the kernel says of an interface.
type Info struct {
	Index int
	// Peer is the index of the other end of a veth, in that end's namespace.
	Peer  int
	Flags uint32
	MTU   int
	Group uint32
	MAC   net.HardwareAddr
	// Operational is the state of RFC 2863.
	Operational uint8
}

// Ready tells that packets pass: the interface is up and so is its other end.
func (i *Info) Ready() bool { return i.Operational == operUp }

const operUp = 6 // IF_OPER_UP, linux/if.h

func (i *Info) parse(data []byte) {
	if len(data) < unix.SizeofIfInfomsg {
		return
	}
	msg := nl.DeserializeIfInfomsg(data)
	*i = Info{Index: int(msg.Index), Flags: msg.Flags}
	attrs, _ := nl.ParseRouteAttr(data[unix.SizeofIfInfomsg:])
	for _, a := range attrs {
		switch a.Attr.Type {
		case unix.IFLA_ADDRESS:
			i.MAC = slices.Clone(a.Value)
		case unix.IFLA_OPERSTATE:
			if len(a.Value) > 0 {
				i.Operational = a.Value[0]
			}
		case unix.IFLA_LINK, unix.IFLA_MTU, unix.IFLA_GROUP:
			if len(a.Value) < 4 {
				continue
			}
			v := binary.NativeEndian.Uint32(a.Value)
			switch a.Attr.Type {
			case unix.IFLA_LINK:
				i.Peer = int(v)
			case unix.IFLA_MTU:
				i.MTU = int(v)
			case unix.IFLA_GROUP:
				i.Group = v
			}
		}
	}
}
