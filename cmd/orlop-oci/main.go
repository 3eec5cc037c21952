// Command orlop-oci is Orlop's executor behind the command line of an OCI runtime: the
// commands, flags, exit codes and messages that containerd, CRI-O, podman and buildah
// know from runc.
//
// It parses its own flags. A runtime is started several times for each container, so what
// is linked in counts; and the syntax that callers may use is that of Go's package flag,
// with one dash or two, which the POSIX parsers of this project's other commands refuse.
//
// The runtime reads the mount table at each start to find the limit of its control
// group, which on a node with a hundred containers takes longer than all else that it does;
// a process that lives for milliseconds has no use for it.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/signals"
	"github.com/orlop-io/orlop/internal/platform/container"
)

var version = "dev" // set by the linker

// app is what the global flags say.
type app struct {
	root, logPath, logFormat, rootless, criu string
	debug, systemd                           bool

	log *logger
}

// command is one of the commands.
type command struct {
	name, args, about string
	// exact is how many arguments it takes, or with more at least that many.
	exact int
	more  bool
	// ordered: flags after the first argument are arguments.
	ordered bool
	// prepare declares the flags and returns what carries the command out.
	prepare func(f *flags) func(a *app, args []string) error
}

var commands = []command{
	{"checkpoint", "ID", "save a running container by CRIU", 1, false, false, checkpointCommand},
	{"create", "ID", "create a container", 1, false, false, createCommand},
	{"delete", "ID", "delete a container, and what is left of one", 1, false, false, deleteCommand},
	{"events", "ID", "show a container's use of resources and its out-of-memory kills", 1, false, false, eventsCommand},
	{"exec", "ID COMMAND [ARG...]", "run a further process in a container", 1, true, true, execCommand},
	{"features", "", "show what this runtime can do", 0, false, false, featuresCommand},
	{"kill", "ID [SIGNAL]", "send a signal (default: SIGTERM) to a container's process", 1, true, false, killCommand},
	{"list", "", "list the containers of the root", 0, false, false, listCommand},
	{"pause", "ID", "freeze every process of a container", 1, false, false, pauseCommand},
	{"ps", "ID [PS OPTION...]", "show the processes of a container", 1, true, true, psCommand},
	{"restore", "ID", "make a container from what checkpoint saved", 1, false, false, restoreCommand},
	{"resume", "ID", "let the processes of a paused container go on", 1, false, false, resumeCommand},
	{"run", "ID", "create and start a container", 1, false, false, runCommand},
	{"spec", "", "write a new specification file", 0, false, false, specCommand},
	{"start", "ID", "start a created container", 1, false, false, startCommand},
	{"state", "ID", "show the state of a container", 1, false, false, stateCommand},
	{"update", "ID", "change the limits of a container", 1, false, false, updateCommand},
}

// status ends the command with that code, and says nothing.
type status int

func (s status) Error() string { return fmt.Sprintf("status %d", int(s)) }

// coded ends the command with that code after it has said what is wrong.
type coded struct {
	code int
	error
}

func (c coded) Unwrap() error { return c.error }

// reserve has the stack grow while there is nothing on it. A stack begins with 8 KiB and is
// doubled when it is full; what is on it is then walked, and the tables that it takes are
// read from the file page by page.
func reserve()

func main() {
	reserve()
	// It lives for milliseconds, or waits: what it allocates until it waits is little.
	debug.SetGCPercent(400)
	begun()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	a := &app{}
	var g flags
	var showVersion bool
	g.str(&a.root, "root", "", "DIR", "directory of the containers' state; should be on a tmpfs (default: "+defaultRoot()+")")
	g.str(&a.logPath, "log", "", "FILE", "write messages to this file, and errors to standard error as well")
	g.str(&a.logFormat, "log-format", "text", "FORMAT", "of messages: text or json")
	g.bool(&a.debug, "debug", "", "write debugging messages too")
	g.bool(&a.systemd, "systemd-cgroup", "", "let systemd make control groups; cgroupsPath is then slice:prefix:name")
	g.str(&a.rootless, "rootless", "auto", "MODE", "go on where one who is not root cannot have a control group: true, false or auto")
	g.str(&a.criu, "criu", "criu", "PATH", "the CRIU binary for checkpoint and restore")
	g.bool(&showVersion, "version", "v", "show the version")
	rest, err := g.parse(args, true)
	if err != nil {
		return usage(os.Stderr, g, nil, err)
	}
	if showVersion {
		printVersion()
		return 0
	}
	if g.help || len(rest) == 0 || rest[0] == "help" || rest[0] == "h" {
		if len(rest) > 1 {
			rest = []string{rest[1], "--help"}
		} else {
			return usage(os.Stdout, g, nil, nil)
		}
	}
	var cmd *command
	for i := range commands {
		if commands[i].name == rest[0] {
			cmd = &commands[i]
		}
	}
	if cmd == nil {
		return usage(os.Stderr, g, nil, fmt.Errorf("no such command: %s", rest[0]))
	}
	var f flags
	do := cmd.prepare(&f)
	rest, err = f.parse(rest[1:], cmd.ordered)
	switch {
	case err != nil:
		return usage(os.Stderr, f, cmd, err)
	case f.help:
		return usage(os.Stdout, f, cmd, nil)
	case len(rest) < cmd.exact || len(rest) > cmd.exact && !cmd.more:
		return usage(os.Stderr, f, cmd, fmt.Errorf("%s takes %s", cmd.name, orNothing(cmd.args)))
	}
	if a.log, err = newLogger(a.logPath, a.logFormat, a.debug); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if a.root == "" {
		a.root = defaultRoot()
	}
	switch a.rootless {
	case "true", "false", "auto":
		err = do(a, rest)
	default:
		err = fmt.Errorf("--rootless %s: use true, false or auto", a.rootless)
	}
	return a.end(err)
}

// end says what went wrong, and returns the exit code.
func (a *app) end(err error) int {
	var s status
	if err == nil {
		return 0
	}
	if errors.As(err, &s) {
		return int(s)
	}
	a.log.fatal(err)
	var c coded
	if errors.As(err, &c) {
		return c.code
	}
	return 1
}

// defaultRoot is where the state is if nobody says.
func defaultRoot() string {
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && os.Geteuid() != 0 {
		return filepath.Join(dir, "orlop-oci")
	}
	return "/run/orlop-oci"
}

// initPath is the executor's other half: beside this binary, or where ORLOP_INIT says.
func initPath() string {
	if p := os.Getenv("ORLOP_INIT"); p != "" {
		return p
	}
	self, err := os.Executable()
	if err != nil {
		return "orlop-init"
	}
	return filepath.Join(filepath.Dir(self), "orlop-init")
}

func (a *app) store() (*container.Store, error) {
	return container.Open(container.Options{Root: a.root, Systemd: a.systemd,
		Rootless: a.rootless == "true" || a.rootless == "auto" && os.Geteuid() != 0, InitPath: initPath(), Log: a.log.Logger})
}

func (a *app) load(id string) (*container.Container, error) {
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	return s.Load(id)
}

// interruptible ends with the signals by which people and service managers end commands: what
// was begun is then taken back. Those that come after stop are for a container.Foreground.
func interruptible() (context.Context, func()) {
	p, err := signals.Open()
	if err != nil {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(err)
		return ctx, func() {}
	}
	p.Take(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return p.Context(context.Background())
}

func printVersion() {
	fmt.Printf("orlop-oci version %s\nspec: %s\ngo: %s\n", version, specs.Version, runtime.Version())
}

func orNothing(s string) string {
	if s == "" {
		return "no arguments"
	}
	return strings.TrimSpace(s)
}
