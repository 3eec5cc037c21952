package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/rawfile"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// The places at which a create can be cut short.
var (
	afterDirectory = fault.New("container.create.directory-made")
	afterIntent    = fault.New("container.create.intent-recorded")
	afterGroup     = fault.New("container.create.cgroup-made")
	afterProcess   = fault.New("container.create.process-made")
	afterRecord    = fault.New("container.create.process-recorded")
	afterPIDFile   = fault.New("container.create.pid-file-written")
)

// Stdio is where the standard streams of a process come from and go to.
type Stdio struct {
	In, Out, Err *os.File // nil is /dev/null; not used with a terminal
	// ConsoleSocket is the path of a socket that is sent the master of the process's
	// terminal.
	ConsoleSocket string
	// Extra become descriptors 3, 4, … of the program.
	Extra []*os.File
}

// CreateOptions says how a container is made.
type CreateOptions struct {
	Stdio
	// Bundle is the directory of config.json and, mostly, the root filesystem.
	Bundle string
	// PIDFile, where it is not empty, is written the number of the process.
	PIDFile string
	// PIDFDSocket, where it is not empty, is the path of a socket that is sent a descriptor of
	// the process (pidfd_open(2)) before it can be started.
	PIDFDSocket string
	// Gate lets any process start the container. Without it the Container that Create
	// returns must be, and the process ends when its maker does before that.
	Gate bool
	// Detach tells that the caller does not stay: a terminal then needs a ConsoleSocket.
	Detach bool
	// NoPivot and NoNewKeyring are as in executor.Config.
	NoPivot, NoNewKeyring bool
	// Notify is the socket that NOTIFY_SOCKET names, where a service manager waits for
	// the container to say that it is ready. ListenFDs of Extra, the first, are
	// sockets that it passes on (sd_listen_fds(3)).
	Notify    string
	ListenFDs int

	restores bool
	pidfds   *receiver // of PIDFDSocket, nil if there is none
}

// Create makes a container and its process, which then waits to be started. On error
// nothing is left.
func (s *Store) Create(ctx context.Context, id string, o CreateOptions) (*Container, error) {
	return s.create(ctx, id, o, (*Container).launch)
}

// create makes a container whose process launch makes and records.
func (s *Store) create(ctx context.Context, id string, o CreateOptions, launch func(*Container, context.Context, CreateOptions) error) (_ *Container, err error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	bundle, err := filepath.Abs(o.Bundle)
	if err != nil {
		return nil, err
	}
	raw, err := rawfile.Read(bundle + "/config.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "specification file %s/config.json is not there; `orlop-oci spec` makes one", bundle)
	}
	if err != nil {
		return nil, fmt.Errorf("read specification: %w", err)
	}
	spec, err := decodeSpec(bundle+"/config.json", raw)
	if err != nil {
		return nil, err
	}
	rootfs, err := checkSpec(bundle, spec, &o)
	if err != nil {
		return nil, err
	}
	c := &Container{store: s, dir: s.path(id), spec: spec, rec: record{
		Version: recordVersion, OCIVersion: specs.Version, ID: id, Bundle: bundle, Rootfs: rootfs, Created: time.Now().UTC(),
		Owner: uint32(os.Geteuid()), Annotations: spec.Annotations, Boot: bootID(), PIDNamespace: checkpoint.OwnNamespace(spec, specs.PIDNamespace),
		Restore: o.restores,
	}}
	if err := c.place(spec); err != nil {
		return nil, err
	}
	if c.rec.Driver == cgroup.Systemd {
		if c.properties, err = cgroup.Properties(spec.Annotations); err != nil {
			return nil, err
		}
	}
	if o.pidfds, err = awaitsPIDFD(o.PIDFDSocket); err != nil {
		return nil, err
	}
	if o.pidfds != nil {
		defer o.pidfds.Close()
	}
	if err := s.mkdir(ctx, c); err != nil {
		return nil, err
	}
	defer c.release()
	afterDirectory.Hit()
	if err := c.free(); err != nil {
		return nil, errors.Join(err, c.forget())
	}
	defer func() {
		if err != nil {
			// What ended the create must not keep it from being taken back.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
			defer cancel()
			if e := c.undo(ctx); e != nil {
				err = errors.Join(err, fmt.Errorf("take back what was made: %w", e))
			}
		}
	}()
	if err := rawfile.Write(c.dir+"/config.json", raw, 0o600); err != nil {
		return nil, fmt.Errorf("record container: %w", err)
	}
	if err := c.write(); err != nil {
		return nil, err
	}
	afterIntent.Hit()
	if err := launch(c, ctx, o); err != nil {
		return nil, err
	}
	afterRecord.Hit()
	if o.PIDFile != "" {
		if err := WritePIDFile(o.PIDFile, c.rec.PID); err != nil {
			return nil, err
		}
		afterPIDFile.Hit()
	}
	return c, nil
}

// checkSpec refuses what no container can be made of, before anything is, and returns
// the root filesystem's absolute path.
func checkSpec(bundle string, spec *specs.Spec, o *CreateOptions) (string, error) {
	if spec.Root == nil || spec.Root.Path == "" {
		return "", errs.New(errs.Invalid, "specification %s/config.json: root.path is missing", bundle)
	}
	if spec.Process == nil {
		return "", errs.New(errs.Invalid, "specification %s/config.json: process is missing", bundle)
	}
	rootfs := spec.Root.Path
	if !filepath.IsAbs(rootfs) {
		rootfs = filepath.Join(bundle, rootfs)
	}
	rootfs, err := filepath.EvalSymlinks(rootfs)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errs.New(errs.NotFound, "root filesystem: %w", err)
	}
	if err != nil {
		return "", fmt.Errorf("root filesystem: %w", err)
	}
	if st, err := os.Stat(rootfs); err != nil {
		return "", fmt.Errorf("root filesystem: %w", err)
	} else if !st.IsDir() {
		return "", errs.New(errs.Invalid, "root filesystem: %s is not a directory", rootfs)
	}
	return rootfs, checkConsole(spec.Process, o.ConsoleSocket, o.Detach)
}

// checkConsole: somebody must have the master of a terminal, the caller or who listens
// on the socket.
func checkConsole(p *specs.Process, socket string, detach bool) error {
	switch {
	case socket != "" && !p.Terminal:
		return errs.New(errs.Invalid, "cannot use console socket if no terminal is allocated: leave it out, or set process.terminal")
	case socket != "" && !detach:
		return errs.New(errs.Invalid, "cannot use console socket if the command stays in the foreground: leave it out, or detach")
	case socket == "" && p.Terminal && detach:
		return errs.New(errs.Invalid, "cannot allocate tty if the command will detach without setting console socket: give --console-socket, or leave out process.terminal")
	}
	return nil
}

// place settles the container's control group.
func (c *Container) place(spec *specs.Spec) error {
	wanted := ""
	if spec.Linux != nil {
		wanted = spec.Linux.CgroupsPath
	}
	c.rec.Driver = cgroup.Cgroupfs
	if c.store.o.Systemd {
		c.rec.Driver = cgroup.Systemd
	}
	h, err := c.store.groups(c.rec.Driver)
	if err != nil {
		return err
	}
	return c.rec.place(wanted, h)
}

// mkdir makes the container's directory and takes its lock. A directory without a record
// is what a killed Create or Delete left, and is used.
func (s *Store) mkdir(ctx context.Context, c *Container) error {
	exists := func() error {
		return errs.New(errs.AlreadyExists, "container with id %s exists already: delete it first, or use another id", c.rec.ID)
	}
	for {
		err := unix.Mkdir(c.dir, 0o700)
		if err == unix.ENOENT {
			if err := os.MkdirAll(s.o.Root, 0o700); err != nil {
				return fmt.Errorf("make the state directory: %w", err)
			}
			continue
		}
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("make %s: %w", c.dir, err)
		}
		if err == unix.EEXIST {
			if e := unix.Access(c.dir+"/state.json", unix.F_OK); e == nil || held(c.dir) {
				return exists()
			}
		}
		lock, err := acquire(ctx, c.dir)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if unix.Access(c.dir+"/state.json", unix.F_OK) == nil { // somebody was faster
			lock.Close()
			return exists()
		}
		c.lock = lock
		return nil
	}
}

// launch makes the control group and the process, and records it. A process that waits
// at a gate is let go of by the executor only when it has been recorded, and ends with us
// before that: there is never one that no record tells of.
func (c *Container) launch(ctx context.Context, o CreateOptions) (err error) {
	if c.exec, err = executor.New(executor.Options{InitPath: c.store.o.InitPath, Once: true, Log: c.store.o.Log}); err != nil {
		return err
	}
	g, err := c.makeGroup(c.spec)
	if errors.Is(err, errs.PermissionDenied) && c.store.o.Rootless && !limited(c.spec) {
		c.rec.Cgroup, c.rec.CgroupBelow, err = "", nil, nil
	}
	if err != nil {
		return err
	}
	afterGroup.Hit()
	if o.Notify != "" {
		c.rec.Notify = o.Notify
		if err := c.offerNotify(); err != nil {
			return err
		}
	}
	spec := *c.spec
	spec.Process = inherit(spec.Process, o.ListenFDs)
	cfg := executor.Config{
		ID: c.rec.ID, Spec: &spec, Bundle: c.rec.Bundle, Rootfs: executor.Rootfs{Dir: c.rec.Rootfs}, Cgroup: g,
		Stdin: o.In, Stdout: o.Out, Stderr: o.Err, ExtraFiles: o.Extra, NoPivot: o.NoPivot, NoNewKeyring: o.NoNewKeyring,
	}
	if o.Gate {
		if err := unix.Mkfifo(c.dir+"/gate", 0o600); err != nil {
			return fmt.Errorf("make the gate: %w", err)
		}
		if cfg.Gate, err = os.OpenFile(c.dir+"/gate", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open the gate: %w", err)
		}
		defer cfg.Gate.Close()
		cfg.Created = func(p *executor.Process) error { return c.record(p, o) }
	}
	if err := c.saveFilter(); err != nil {
		return err
	}
	p, err := c.exec.Create(ctx, cfg)
	if err != nil {
		return err
	}
	c.proc = p
	if !o.Gate {
		return c.record(p, o)
	}
	return nil
}

// record writes down the process that is ready, and gives its terminal and its descriptor away.
func (c *Container) record(p *executor.Process, o CreateOptions) (err error) {
	afterProcess.Hit()
	c.rec.PID = p.PID()
	if c.rec.Start, err = pidfd.StartTime(c.rec.PID); err != nil {
		return fmt.Errorf("look at the container's process: %w", err)
	}
	if err := c.write(); err != nil {
		return err
	}
	if o.ConsoleSocket != "" && p.Console() != nil {
		if err := sendConsole(o.ConsoleSocket, p.Console()); err != nil {
			return err
		}
	}
	if o.pidfds != nil {
		return o.pidfds.send(pidfdFirst, p.PIDFD())
	}
	return nil
}

// undo takes back a create that failed.
func (c *Container) undo(ctx context.Context) error {
	if c.proc != nil {
		pidfd.Signal(c.proc.PIDFD(), unix.SIGKILL)
		pidfd.Reap(c.proc.PIDFD(), true)
		c.Close()
	}
	if c.made {
		if err := c.removeGroup(ctx); err != nil {
			return err
		}
		c.poststop(ctx)
	}
	return c.forget()
}

// Close lets go of the process of a container that this process created. It is not
// ended, except one that could only be started by us and was not.
func (c *Container) Close() {
	c.release()
	if c.proc != nil {
		c.proc.Close()
	}
	if c.exec != nil {
		c.exec.Close()
		c.exec = nil
	}
}

// Process returns the process of a container that this process created, to start it, to wait for
// it, and to have its terminal.
func (c *Container) Process() *executor.Process { return c.proc }

// WritePIDFile writes the number into a file that appears as a whole: whoever waits for
// it reads all of it.
func WritePIDFile(path string, pid int) error {
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, "."+name)
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return fmt.Errorf("write pid file: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d", pid)
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write pid file: %w", err)
	}
	return nil
}
