// Package criu has CRIU (criu.org) save trees of processes in files, and make them again.
//
// It speaks the protocol of CRIU's rpc.proto with `criu swrk`, a CRIU of its own for each
// request, over a socket that both hold an end of: criu(8) has options on the command line
// that are no options of a request, and the other way round, and only by this protocol does it tell
// at what stage it is.
//
// The messages are few, and are written by hand: generated code, and already the package below it,
// brings what is done at every start into a program that is started for every container and
// hardly ever checkpoints one.
package criu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Version is CRIU's, as major*10000 + minor*100 + sublevel.
type Version int

func (v Version) String() string {
	s := fmt.Sprintf("%d.%d", v/10000, v/100%100)
	if v%100 != 0 {
		s += fmt.Sprintf(".%d", v%100)
	}
	return s
}

// Oldest is the oldest version that is used: it can leave out a PID namespace that is
// joined, freezes by cgroup v2, and tells when a server of pages is ready.
const Oldest Version = 3_15_00

// LSM is the oldest version that can give a process another security label than it had.
const LSM Version = 3_16_00

const install = "install the package criu (https://criu.org/Installation), or name the binary with --criu"

// CRIU is a CRIU that works on this machine.
type CRIU struct {
	path    string
	version Version
}

// Version returns CRIU's version.
func (c *CRIU) Version() Version { return c.version }

// Open finds the binary, by a path or by a name that is looked for in PATH, and asks it for its version
// and whether it can do its work on this kernel: a CRIU that cannot may break the processes
// that it is to save. The error is errs.Unsupported, and says what to do.
func Open(ctx context.Context, name string) (*CRIU, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil, errs.New(errs.Unsupported, "checkpoints are CRIU's work, and %s is not there (%w): %s", name, err, install)
	}
	c := &CRIU{path: path}
	var said tail
	if c.version, err = c.ask(ctx, &said); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, errs.New(errs.Unsupported, "%s does not answer as CRIU does: %w%s; %s", path, err, said.note(), install)
	}
	if c.version < Oldest {
		return nil, errs.New(errs.Unsupported, "%s is CRIU %s, which is too old: %s or newer is needed; %s", path, c.version, Oldest, install)
	}
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *CRIU) ask(ctx context.Context, said *tail) (Version, error) {
	r, err := c.talk(ctx, &Request{Type: version, stderr: said})
	return r.version, err
}

// checkWait is how long CRIU may look at the kernel.
const checkWait = time.Minute

// check runs `criu check`: the request for it tells the reason only in a file.
func (c *CRIU) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.path, "check", "-v1") // errors alone
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || ctx.Err() != nil {
		return fmt.Errorf("%s check: %w", c.path, errors.Join(context.Cause(ctx), err))
	}
	why := reasons(string(out))
	if len(why) == 0 {
		why = []string{err.Error()}
	}
	return errs.New(errs.Unsupported, "CRIU %s cannot work on this kernel: %s (`%s check` tells all); a newer CRIU, or another kernel, may do",
		c.version, strings.Join(why, "; "), c.path)
}

// reasons are the lines of errors in what CRIU has written, without times and places in its
// source, each once and the last four of them: the first causes are before the last
// complaints, and neither is of use without the other.
func reasons(log string) (list []string) {
	for line := range strings.Lines(log) {
		i := strings.Index(line, "Error ")
		if i < 0 {
			continue
		}
		// (00.012345)   1234: Error (criu/file.c:12): what is wrong
		text := strings.TrimSpace(line[i+len("Error "):])
		if strings.HasPrefix(text, "(") {
			if _, rest, ok := strings.Cut(text, "): "); ok {
				text = rest
			}
		}
		text = strings.TrimSuffix(text, ".")
		if text != "" && !slices.Contains(list, text) {
			list = append(list, text)
		}
	}
	const most = 4
	if len(list) > most {
		list = append(list[:most/2:most/2], list[len(list)-most/2:]...)
	}
	return list
}

// Explain adds to an error of Do what CRIU's log tells of it.
func Explain(err error, logFile string) error {
	data, e := os.ReadFile(logFile)
	if e != nil {
		return err
	}
	why := slices.DeleteFunc(reasons(string(data)), func(s string) bool { return strings.Contains(err.Error(), s) })
	if len(why) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(why, "; "))
	}
	return fmt.Errorf("%w (all of it: %s)", err, logFile)
}

// tail keeps the beginning of what CRIU writes before it has a log.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[:min(len(p), 4096-len(t.b))]...)
	return len(p), nil
}

func (t *tail) note() string {
	if why := reasons(string(t.b)); len(why) > 0 {
		return " (" + strings.Join(why, "; ") + ")"
	}
	return ""
}
