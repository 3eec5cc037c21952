package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func killCommand(f *flags) func(*app, []string) error {
	var all bool
	f.bool(&all, "all", "a", "send the signal to every process of the container")
	return func(a *app, args []string) error {
		name := "SIGTERM"
		switch {
		case len(args) > 2:
			return fmt.Errorf("kill takes ID [SIGNAL]")
		case len(args) == 2:
			name = args[1]
		}
		sig, err := parseSignal(name)
		if err != nil {
			return err
		}
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		return c.Kill(sig, all)
	}
}

// parseSignal reads a signal's number, or its name with or without SIG.
func parseSignal(s string) (syscall.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil {
		if n < 0 || n > 64 {
			return 0, fmt.Errorf("signal %d: there are 64", n)
		}
		return syscall.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	// signal(7): real-time signals are counted from 34 on, as the C library keeps two.
	if rest, ok := strings.CutPrefix(name, "SIGRTMIN"); ok {
		if n, err := strconv.Atoi(rest); (err == nil || rest == "") && n >= 0 && n <= 30 {
			return syscall.Signal(34 + n), nil
		}
	}
	if rest, ok := strings.CutPrefix(name, "SIGRTMAX"); ok {
		if n, err := strconv.Atoi(rest); (err == nil || rest == "") && n <= 0 && n >= -30 {
			return syscall.Signal(64 + n), nil
		}
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, fmt.Errorf("signal %q is not known", s)
}

func deleteCommand(f *flags) func(*app, []string) error {
	var force bool
	f.bool(&force, "force", "f", "kill a container that runs (SIGKILL); one that is not there is no error")
	return func(a *app, args []string) error {
		s, err := a.store()
		if err != nil {
			return err
		}
		err = s.Delete(context.Background(), args[0], force)
		if force && errors.Is(err, errs.NotFound) {
			return nil
		}
		return err
	}
}
