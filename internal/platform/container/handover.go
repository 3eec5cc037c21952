package container

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// receiver is somebody who listens on a unix socket for a descriptor.
type receiver struct {
	fd   int
	what string // for errors: "console socket /run/x"
}

// connect connects to the socket at path, which is of the kind that what says.
func connect(what, path string) (*receiver, error) {
	r := &receiver{what: what + " " + path}
	var err error
	if r.fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("%s: %w", r.what, err)
	}
	if err := unix.Connect(r.fd, &unix.SockaddrUnix{Name: path}); err != nil {
		r.Close()
		return nil, fmt.Errorf("%s: %w; does anybody listen there?", r.what, err)
	}
	return r, nil
}

// send gives the descriptor away, with a message beside it.
func (r *receiver) send(message string, f *os.File) error {
	if err := unix.Sendmsg(r.fd, []byte(message), unix.UnixRights(int(f.Fd())), nil, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("%s: send the descriptor: %w", r.what, err)
	}
	return nil
}

func (r *receiver) Close() { unix.Close(r.fd) }

// sendConsole sends the master of a terminal to whoever listens on the socket at path,
// with its name as the message.
func sendConsole(path string, master *os.File) error {
	r, err := connect("console socket", path)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.send("/dev/ptmx", master)
}

// Messages that go with a process's descriptor (pidfd_open(2)), by which runc's receivers
// tell a container's first process from a further one.
const (
	pidfdFirst   = "standard"
	pidfdFurther = "setns"
)

// awaitsPIDFD connects to the socket that a process's descriptor is to be sent to, before
// there is a process; it returns nil if path is empty.
func awaitsPIDFD(path string) (*receiver, error) {
	if path == "" {
		return nil, nil
	}
	return connect("pidfd socket", path)
}
