package container

import (
	"fmt"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// A service manager is told by sd_notify(3) that a container is ready. The socket that a
// program in it writes to is not the manager's, which lies outside of the container and
// believes what comes from there: it is one of ours, and only READY=1 is passed on.

// notifyPath is where the container finds the socket.
const notifyPath = "/run/notify"

// offerNotify makes the directory of the socket and shows it to the container.
func (c *Container) offerNotify() error {
	dir := c.dir + "/notify"
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	s := *c.spec
	s.Mounts = append(slices.Clone(s.Mounts), specs.Mount{
		Destination: notifyPath, Type: "bind", Source: dir, Options: []string{"bind", "nosuid", "noexec", "nodev", "ro"}})
	p := *s.Process
	p.Env = append(slices.Clone(p.Env), "NOTIFY_SOCKET="+notifyPath+"/notify.sock")
	s.Process = &p
	c.spec = &s
	return nil
}

// listenNotify binds the socket, before the program runs.
func (c *Container) listenNotify() (err error) {
	if c.rec.Notify == "" {
		return nil
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("notify socket: %w", err)
		}
	}()
	// A socket's path has 107 bytes, which a container's directory may be longer than.
	dir, err := unix.Open(c.dir+"/notify", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	path := fmt.Sprintf("/proc/self/fd/%d/notify.sock", dir)
	os.Remove(path)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	c.notify = os.NewFile(uintptr(fd), "notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	return os.Chmod(path, 0o777) // whoever the program runs as
}

// Ready waits until the container says that it is ready, and passes that on. It returns at
// once where nobody asked to be told, and when the container ends.
func (c *Container) Ready() error {
	if c.notify == nil {
		return nil
	}
	defer c.notify.Close()
	proc, err := c.open()
	if err != nil || proc == nil {
		return err
	}
	defer proc.Close()
	fd := int32(c.notify.Fd())
	buf := make([]byte, 4096)
	for {
		p := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}, {Fd: int32(proc.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("notify socket: %w", err)
		}
		if p[0].Revents&unix.POLLIN != 0 {
			n, _, err := unix.Recvfrom(int(fd), buf, 0)
			if err == nil && slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
				return c.tellReady()
			}
			continue
		}
		if p[1].Revents != 0 {
			return nil
		}
	}
}

func (c *Container) tellReady() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify socket: %w", err)
	}
	defer unix.Close(fd)
	msg := fmt.Sprintf("READY=1\nMAINPID=%d", c.rec.PID)
	if err := unix.Sendto(fd, []byte(msg), 0, &unix.SockaddrUnix{Name: c.rec.Notify}); err != nil {
		return errs.New(errs.Unavailable, "tell %s that the container is ready: %w", c.rec.Notify, err)
	}
	return nil
}
