package ociruntime

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// console is a socket to which a runtime sends a terminal's master.
type console struct {
	path string
	l    *net.UnixListener
}

const consolePrefix = "console-"

// SweepConsoles removes the sockets that a caller which was killed has left in the directory.
func SweepConsoles(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, consolePrefix+"*"))
	for _, d := range left {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}

// listen makes a socket in the directory, whose name has to leave room in the 108 bytes of
// sockaddr_un (unix(7)).
func listen(dir string) (*console, error) {
	d, err := os.MkdirTemp(dir, consolePrefix)
	if err != nil {
		return nil, fmt.Errorf("console socket: %w", err)
	}
	path := filepath.Join(d, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		os.Remove(d)
		return nil, fmt.Errorf("console socket: %w", err)
	}
	return &console{path, l}, nil
}

func (c *console) close() {
	c.l.Close()
	os.RemoveAll(filepath.Dir(c.path))
}

// sentWait is for what was sent by a command that has ended.
const sentWait = time.Second

// receive takes the terminal that a command which has ended has sent.
func (c *console) receive() (*os.File, error) {
	if err := c.l.SetDeadline(time.Now().Add(sentWait)); err != nil {
		return nil, err
	}
	conn, err := c.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(sentWait)); err != nil {
		return nil, err
	}
	text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*4))
	_, n, _, _, err := conn.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	list, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range list {
		got, err := unix.ParseUnixRights(&list[i])
		if err == nil {
			fds = append(fds, got...)
		}
	}
	for _, fd := range fds[min(1, len(fds)):] {
		unix.Close(fd)
	}
	if len(fds) == 0 {
		return nil, errors.New("no descriptor came")
	}
	f := os.NewFile(uintptr(fds[0]), "terminal")
	if _, err := unix.IoctlGetInt(fds[0], unix.TIOCGPTN); err != nil {
		f.Close()
		return nil, fmt.Errorf("what came is no terminal's master: %w", err)
	}
	return f, nil
}
