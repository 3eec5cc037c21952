package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/unmarshal"
	"github.com/orlop-io/orlop/internal/platform/container"
)

// execFailed is the exit code of an exec that could not be; those below are the program's.
const execFailed = 255

// execFlags are what exec's flags say of the process.
type execFlags struct {
	cwd, user, process, label, apparmor string
	env, gids, caps                     []string
	tty, noNewPrivs                     bool
}

func execCommand(f *flags) func(*app, []string) error {
	var x execFlags
	var o container.ExecOptions
	var preserve int
	f.str(&o.ConsoleSocket, "console-socket", "", "PATH", "socket that is sent the master of the terminal")
	f.str(&o.PIDFDSocket, "pidfd-socket", "", "PATH", "socket that is sent a descriptor of the process (pidfd)")
	f.str(&x.cwd, "cwd", "", "DIR", "working directory in the container")
	f.strs(&x.env, "env", "NAME=VALUE", "set a variable of the environment (may be given several times)")
	f.short("e")
	f.bool(&x.tty, "tty", "t", "give the process a terminal")
	f.str(&x.user, "user", "", "UID[:GID]", "run as this user")
	f.short("u")
	f.strs(&x.gids, "additional-gids", "GID", "a further group (may be given several times)")
	f.short("g")
	f.str(&x.process, "process", "", "FILE", "read the process from this JSON file; the other flags of it then say nothing")
	f.short("p")
	f.bool(&o.Detach, "detach", "d", "leave once the program runs")
	f.str(&o.PIDFile, "pid-file", "", "FILE", "write the number of the process to this file")
	f.str(&x.label, "process-label", "", "LABEL", "SELinux label of the process")
	f.str(&x.apparmor, "apparmor", "", "PROFILE", "AppArmor profile of the process")
	f.bool(&x.noNewPrivs, "no-new-privs", "", "forbid the process to gain privileges")
	f.strs(&x.caps, "cap", "CAPABILITY", "a further capability (may be given several times)")
	f.short("c")
	f.int(&preserve, "preserve-fds", 0, "N", "pass the program N more descriptors, from 3 + $LISTEN_FDS on")
	f.strs(&o.Cgroups, "cgroup", "[CONTROLLERS:]PATH", "join this group below the container's own (may be given several times)")
	f.bool(&o.IgnorePaused, "ignore-paused", "", "of a paused container, wait until it is resumed")
	var noSubreaper bool
	f.bool(&noSubreaper, "no-subreaper", "", "has no effect: exec never takes processes of others")
	return func(a *app, args []string) error {
		code, err := a.exec(args, x, o, preserve)
		if err != nil {
			return coded{execFailed, fmt.Errorf("exec failed: %w", err)}
		}
		if code != 0 {
			return status(code)
		}
		return nil
	}
}

func (a *app) exec(args []string, x execFlags, o container.ExecOptions, preserve int) (int, error) {
	ctx, stop := interruptible()
	defer stop()
	c, err := a.load(args[0])
	if err != nil {
		return 0, err
	}
	if o.Process, err = x.read(c, args[1:]); err != nil {
		return 0, err
	}
	o.In, o.Out, o.Err = os.Stdin, os.Stdout, os.Stderr
	o.ListenFDs = listenFDs()
	if o.Extra, err = extraFiles(o.ListenFDs + preserve); err != nil {
		return 0, err
	}
	p, err := c.Exec(ctx, o)
	if err != nil {
		return 0, err
	}
	defer p.Close()
	if o.Detach {
		return 0, p.Start(ctx)
	}
	fg, err := container.NewForeground(false)
	if err != nil {
		return 0, err
	}
	stop()
	if ctx.Err() != nil { // as in runContainer
		return 0, context.Cause(ctx)
	}
	ctx = context.Background()
	defer fg.Close()
	if err := fg.Attach(p); err != nil {
		return 0, err
	}
	if err := p.Start(ctx); err != nil {
		return 0, err
	}
	return fg.Wait(p)
}

// read makes the process: of the file that --process names, or of the container's own with what
// the flags change.
func (x *execFlags) read(c *container.Container, args []string) (*specs.Process, error) {
	if x.process != "" {
		data, err := orDash(x.process)
		if err != nil {
			return nil, fmt.Errorf("read the process: %w", err)
		}
		var p specs.Process
		if err := unmarshal.JSON(data, &p); err != nil {
			return nil, fmt.Errorf("read the process from %s: %w", x.process, err)
		}
		return &p, nil
	}
	if len(args) == 0 {
		return nil, errors.New("no command is given")
	}
	first, err := c.FirstProcess()
	if err != nil {
		return nil, err
	}
	p := *first
	p.Args, p.CommandLine, p.Terminal = args, "", x.tty
	p.ConsoleSize = nil
	if x.cwd != "" {
		p.Cwd = x.cwd
	}
	if x.label != "" {
		p.SelinuxLabel = x.label
	}
	if x.apparmor != "" {
		p.ApparmorProfile = x.apparmor
	}
	if x.noNewPrivs {
		p.NoNewPrivileges = true
	}
	p.Env = append(slices.Clone(p.Env), x.env...)
	if x.user != "" {
		uid, gid, both := strings.Cut(x.user, ":")
		id, err := strconv.ParseUint(uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--user %s: the user is given by number", x.user)
		}
		p.User.UID = uint32(id)
		if both {
			if id, err = strconv.ParseUint(gid, 10, 32); err != nil {
				return nil, fmt.Errorf("--user %s: the group is given by number", x.user)
			}
			p.User.GID = uint32(id)
		}
	}
	for _, g := range x.gids {
		id, err := strconv.ParseUint(g, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("--additional-gids %s: a group is given by number", g)
		}
		p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), uint32(id))
	}
	if len(x.caps) > 0 {
		p.Capabilities = addCapabilities(p.Capabilities, x.caps)
	}
	return &p, nil
}

// addCapabilities adds to all sets that count; to the ambient one only where the
// inheritable one, which it needs, has it as well.
func addCapabilities(have *specs.LinuxCapabilities, more []string) *specs.LinuxCapabilities {
	var c specs.LinuxCapabilities
	if have != nil {
		c = *have
	}
	for _, name := range more {
		for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
			if !slices.Contains(*set, name) {
				*set = append(slices.Clone(*set), name)
			}
		}
	}
	return &c
}
