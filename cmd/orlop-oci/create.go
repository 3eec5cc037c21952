package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/orlop-io/orlop/internal/platform/container"
)

// making are the flags that create and run have in common.
type making struct {
	o        container.CreateOptions
	preserve int
}

func (m *making) flags(f *flags) {
	f.str(&m.o.Bundle, "bundle", ".", "DIR", "the bundle (default: the working directory)")
	f.short("b")
	f.str(&m.o.ConsoleSocket, "console-socket", "", "PATH", "socket that is sent the master of the terminal")
	f.str(&m.o.PIDFDSocket, "pidfd-socket", "", "PATH", "socket that is sent a descriptor of the container's process (pidfd)")
	f.str(&m.o.PIDFile, "pid-file", "", "FILE", "write the number of the container's process to this file")
	f.bool(&m.o.NoPivot, "no-pivot", "", "do not use pivot_root(2): for hosts whose root is an initramfs")
	f.bool(&m.o.NoNewKeyring, "no-new-keyring", "", "leave the process the session keyring of the caller")
	f.int(&m.preserve, "preserve-fds", 0, "N", "pass the program N more descriptors, from 3 + $LISTEN_FDS on")
}

// options completes the options with what is inherited: descriptors and the environment.
func (m *making) options() (container.CreateOptions, error) {
	o := m.o
	o.In, o.Out, o.Err = os.Stdin, os.Stdout, os.Stderr
	o.Notify = os.Getenv("NOTIFY_SOCKET")
	o.ListenFDs = listenFDs()
	var err error
	o.Extra, err = extraFiles(o.ListenFDs + m.preserve)
	return o, err
}

// listenFDs is how many sockets a service manager passes on (sd_listen_fds(3)).
func listenFDs() int {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// extraFiles are the n descriptors from 3 on.
func extraFiles(n int) (files []*os.File, err error) {
	if n < 0 {
		return nil, fmt.Errorf("--preserve-fds %d: it cannot be less than 0", n)
	}
	for fd := 3; fd < 3+n; fd++ {
		if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return nil, fmt.Errorf("descriptor %d is to be passed on, but it is not open: %w", fd, err)
		}
		files = append(files, os.NewFile(uintptr(fd), "inherited"))
	}
	return files, nil
}

func createCommand(f *flags) func(*app, []string) error {
	var m making
	m.flags(f)
	return func(a *app, args []string) error {
		ctx, stop := interruptible()
		defer stop()
		o, err := m.options()
		if err != nil {
			return err
		}
		o.Gate, o.Detach = true, true
		s, err := a.store()
		if err != nil {
			return err
		}
		c, err := s.Create(ctx, args[0], o)
		if err != nil {
			return err
		}
		c.Close()
		return nil
	}
}

func startCommand(f *flags) func(*app, []string) error {
	return func(a *app, args []string) error {
		ctx, stop := interruptible()
		defer stop()
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		if err := c.Start(ctx); err != nil {
			return err
		}
		return c.Ready()
	}
}

func runCommand(f *flags) func(*app, []string) error {
	var m making
	var keep, noSubreaper bool
	m.flags(f)
	f.bool(&m.o.Detach, "detach", "d", "leave once the program runs")
	f.bool(&keep, "keep", "", "do not delete the container when it has ended")
	f.bool(&noSubreaper, "no-subreaper", "", "do not take processes whose parents have ended")
	return func(a *app, args []string) error {
		o, err := m.options()
		if err != nil {
			return err
		}
		s, err := a.store()
		if err != nil {
			return err
		}
		return runContainer(a, s, args[0], o, keep, !noSubreaper)
	}
}

// runContainer runs a container to its end, or until it runs.
func runContainer(a *app, s *container.Store, id string, o container.CreateOptions, keep, subreaper bool) error {
	ctx, stop := interruptible()
	defer stop()
	c, err := s.Create(ctx, id, o)
	if err != nil {
		return err
	}
	defer c.Close()
	var fg *container.Foreground
	if !o.Detach {
		if fg, err = container.NewForeground(subreaper); err != nil {
			return removing(c, err)
		}
		// From here on signals are the process's: it may run, and have handlers, before we
		// know that it does.
		stop()
		if ctx.Err() != nil {
			return removing(c, context.Cause(ctx))
		}
		ctx = context.Background()
		defer fg.Close()
		if err := fg.Attach(c.Process()); err != nil {
			return removing(c, err)
		}
	}
	if err := c.Start(ctx); err != nil {
		return removing(c, err)
	}
	if o.Detach {
		return c.Ready()
	}
	if o.Notify != "" {
		go func() { // ends with the container
			if err := c.Ready(); err != nil {
				a.log.Warn("sd_notify", "error", err)
			}
		}()
	}
	code, err := fg.Wait(c.Process())
	if err != nil {
		return removing(c, err)
	}
	if !keep {
		if err := removing(c, nil); err != nil {
			return err
		}
	}
	if code != 0 {
		return status(code)
	}
	return nil
}

// removing takes the container away, because of err if there is one.
func removing(c *container.Container, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return errors.Join(err, c.Remove(ctx))
}
