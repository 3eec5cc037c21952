package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// The places at which a restore can be cut short, beside those of a create.
var (
	afterPlace      = fault.New("container.restore.place-made")
	afterStarted    = fault.New("container.restore.criu-started")
	afterNamespaces = fault.New("container.restore.namespaces-made")
	afterTree       = fault.New("container.restore.processes-made")
	afterRestored   = fault.New("container.restore.process-recorded")
)

// Restore makes a container of what Checkpoint has saved and of a bundle, whose root filesystem must have
// what the saved one had. Its processes run when Restore returns; the first is our child.
// On error nothing is left, and the images are as they were.
//
// The container is recorded while its processes still stand still, and CRIU ends them if we
// die before that: as with a create there is never a process that no record tells of.
func (s *Store) Restore(ctx context.Context, id string, o CreateOptions, im checkpoint.Images) (*Container, error) {
	if o.NoPivot {
		return nil, errs.New(errs.Unsupported, "--no-pivot: CRIU restores by pivot_root(2); leave it out")
	}
	streams, err := checkpoint.SavedStreams(im.Dir)
	if err != nil {
		return nil, err
	}
	saved, err := checkpoint.CheckImages(im.Dir)
	if err != nil {
		return nil, err
	}
	// Memory that was saved before, by pre-dumps.
	for parent := filepath.Join(im.Dir, "parent"); ; parent = filepath.Join(parent, "parent") {
		if _, err := os.Stat(parent); err != nil {
			break
		}
		if _, err := checkpoint.CheckImages(parent); err != nil {
			return nil, err
		}
	}
	if im.Cgroups == "" {
		if im.Cgroups = saved.Cgroups; im.Cgroups == "" {
			im.Cgroups = "soft" // as the other runtime has saved them
		}
	}
	tool, err := im.Open(ctx)
	if err != nil {
		return nil, err
	}
	o.restores = true
	return s.create(ctx, id, o, func(c *Container, ctx context.Context, o CreateOptions) error {
		r := &restoring{Container: c, o: o, images: im, tool: tool, streams: streams}
		if err := r.do(ctx); err != nil {
			return fmt.Errorf("restore %s: %w", c.rec.ID, err)
		}
		return nil
	})
}

// restoring is a restore on its way.
type restoring struct {
	*Container
	o       CreateOptions
	images  checkpoint.Images
	tool    *criu.CRIU
	streams []string

	pid     int // of the first process
	pidfd   *os.File
	console *os.File
}

func (r *restoring) do(ctx context.Context) error {
	if err := checkpoint.Savable(r.spec); err != nil {
		return err
	}
	opts, err := r.images.Options("restore.log")
	if err != nil {
		return err
	}
	g, err := r.makeGroup(r.spec)
	if err != nil {
		return err
	}
	afterGroup.Hit()
	if opts.Mounts, err = checkpoint.Sources(r.spec, r.rec.Bundle, r.rec.Rootfs, g); err != nil {
		return err
	}
	opts.Sibling, opts.EvasiveDevices = true, true
	req := &criu.Request{Type: criu.Restore, Options: opts}
	defer func() {
		for _, f := range req.Extra {
			f.Close()
		}
	}()
	if err := r.namespaces(req); err != nil {
		return err
	}
	r.inherit(req)
	// CRIU wants the root to be a mount, whose parent nothing is mounted over.
	opts.Root = r.dir + "/root"
	if err := os.Mkdir(opts.Root, 0o700); err != nil {
		return fmt.Errorf("make a place for the root filesystem: %w", err)
	}
	afterPlace.Hit()
	req.Spawn = func(start criu.Start) error { return r.spawn(g, opts, start) }
	defer func() {
		opts.Images.Close() // both may be nil
		opts.Work.Close()
	}()
	req.Notify = func(n *criu.Notification) error { return r.notified(ctx, n) }
	err = r.tool.Do(ctx, req)
	if e := unlockNetwork(r.spec); err == nil {
		err = e
	}
	if err == nil && r.pidfd == nil {
		err = errs.New(errs.Internal, "CRIU does not tell which process it has restored")
	}
	if err != nil {
		err = r.images.Explain(err, opts.LogFile)
		r.abandon()
		return err
	}
	r.proc = executor.Adopt(r.rec.ID, r.pid, r.pidfd, r.console)
	if e := os.Remove(opts.Root); e != nil {
		return fmt.Errorf("take away the place of the root filesystem: %w", e)
	}
	return nil
}

// spawn starts CRIU in the container's group, of which what it restores becomes part. It
// is in a mount namespace of its own, which is gone with it, and where it leaves groups alone also
// in the container's cgroup namespace, which CRIU then does not make.
func (r *restoring) spawn(g *cgroup.Group, opts *criu.Options, start criu.Start) error {
	whole, threads := g.Clones()
	var unshare uintptr
	if opts.Cgroups == criu.CgroupsIgnore && checkpoint.OwnNamespace(r.spec, specs.CgroupNamespace) {
		unshare = unix.CLONE_NEWCGROUP
		if !whole {
			return errs.New(errs.Unsupported, "a cgroup namespace cannot be restored in this control group (cgroup v1, or a CPU quota that is used up): use --manage-cgroups-mode soft")
		}
	}
	return checkpoint.Privately(func() error {
		if err := unix.Mount(r.rec.Rootfs, opts.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind the root filesystem: %w", err)
		}
		// It works in a directory, and mounts in it, so that has to be one of this namespace.
		if err := r.images.OpenDirs(opts); err != nil {
			return err
		}
		spawn := g.Spawn
		if threads {
			spawn = g.SpawnOnThread
		}
		pid, err := spawn(func(cgroupFD int) (int, error) { return start(cgroupFD, unshare) })
		if err == nil && opts.Cgroups != criu.CgroupsIgnore {
			opts.CgroupRoots, err = cgroupRoots(pid)
		}
		afterStarted.Hit()
		return err
	})
}

// namespaces adds those that the container joins.
func (r *restoring) namespaces(req *criu.Request) error {
	for _, n := range checkpoint.ExternalNamespaces {
		p, err := checkpoint.Joined(r.spec, n.Kind, n.File)
		if err != nil {
			return err
		}
		if p == "" {
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			return fmt.Errorf("%s namespace: %w", n.Kind, err)
		}
		req.Options.Inherit = append(req.Options.Inherit, criu.InheritFD{Key: n.Name, FD: criu.FirstExtra + len(req.Extra)})
		req.Extra = append(req.Extra, f)
	}
	for _, n := range checkpoint.JoinedNamespaces {
		p, err := checkpoint.Joined(r.spec, n.Kind, n.File)
		if err != nil {
			return err
		}
		if p != "" {
			req.Options.JoinNamespaces = append(req.Options.JoinNamespaces, criu.Pair{Key: n.File, Value: p})
		}
	}
	return nil
}

// inherit gives what is restored our standard streams in place of those that it had.
func (r *restoring) inherit(req *criu.Request) {
	if r.spec.Process.Terminal {
		return
	}
	req.Stdio = [3]*os.File{r.o.In, r.o.Out, r.o.Err}
	for fd, s := range r.streams {
		if checkpoint.IsExternal(s) && !slices.ContainsFunc(req.Options.Inherit, func(i criu.InheritFD) bool { return i.Key == s }) {
			req.Options.Inherit = append(req.Options.Inherit, criu.InheritFD{Key: s, FD: fd})
		}
	}
}

// cgroupRoots are where a process is, by controllers.
func cgroupRoots(pid int) (list []criu.Pair, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(data)) {
		if part := strings.SplitN(strings.TrimSpace(line), ":", 3); len(part) == 3 {
			list = append(list, criu.Pair{Key: part[1], Value: part[2]})
		}
	}
	return list, nil
}

// furnish makes the new namespaces of a process as a create would: CRIU brings back a network namespace that is empty,
// with the loopback interface down, on which connections may be about to be restored. Sysctls may be of interfaces that hooks make.
func (r *restoring) furnish(ctx context.Context, pid int) error {
	own, inside := checkpoint.OwnNamespace(r.spec, specs.NetworkNamespace), fmt.Sprintf("/proc/%d/ns/net", pid)
	if own {
		if err := namespace.Do(inside, namespace.LoopbackUp); err != nil {
			return fmt.Errorf("bring up the loopback interface: %w", err)
		}
	}
	if h := r.spec.Hooks; h != nil {
		state := r.hookState(specs.StateCreating)
		state.Pid = pid
		//lint:ignore SA1019 engines still use it
		if err := executor.RunHooks(ctx, slices.Concat(h.Prestart, h.CreateRuntime), state); err != nil {
			return err
		}
	}
	if !own {
		return nil
	}
	return namespace.Do(inside, func() error { return namespace.SetSysctls([]namespace.Kind{namespace.Net}, r.spec.Linux.Sysctl) })
}

// notified does what has to be done at a stage of the restore.
func (r *restoring) notified(ctx context.Context, n *criu.Notification) error {
	if n.PID > 0 && r.pid == 0 {
		r.pid = n.PID
	}
	switch n.Script {
	case "setup-namespaces":
		afterNamespaces.Hit()
		return r.furnish(ctx, n.PID)
	case "orphan-pts-master":
		if n.File == nil || r.console != nil {
			return nil
		}
		if r.o.ConsoleSocket != "" {
			return sendConsole(r.o.ConsoleSocket, n.File)
		}
		if err := unix.SetNonblock(int(n.File.Fd()), true); err != nil {
			return err
		}
		fd, err := unix.FcntlInt(n.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		r.console = os.NewFile(uintptr(fd), "console")
	case "post-restore":
		afterTree.Hit()
		r.pid = n.PID
		fd, err := unix.PidfdOpen(n.PID, 0)
		if err != nil {
			return fmt.Errorf("open the restored process %d: %w", n.PID, err)
		}
		r.pidfd = os.NewFile(uintptr(fd), "pidfd")
		r.rec.PID = n.PID
		if r.rec.Start, err = pidfd.StartTime(n.PID); err != nil {
			return fmt.Errorf("look at the restored process %d: %w", n.PID, err)
		}
		if err := r.write(); err != nil {
			return err
		}
		afterRestored.Hit()
	case "pre-resume": // they have their labels now, and still stand still
		if err := r.confined(r.pid); err != nil {
			// CRIU lets them go on whatever is said.
			if g, e := r.group(); e == nil && g != nil {
				g.Kill(unix.SIGKILL)
			}
			return err
		}
	}
	return nil
}

// confined makes sure that the restored process has the label that the specification asks for, as a matter of
// safety: CRIU gives it the one that it had, or that --lsm-profile names.
func (r *restoring) confined(pid int) error {
	p := r.spec.Process
	want := p.ApparmorProfile
	if p.SelinuxLabel != "" {
		want = p.SelinuxLabel
	}
	if want == "" || r.images.LSMProfile != "" {
		return nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/attr/current", pid))
	if err != nil && want == "unconfined" {
		return nil // no module that could confine it
	}
	if err != nil {
		return fmt.Errorf("see how the restored process is confined: %w", err)
	}
	has, _, _ := strings.Cut(strings.TrimRight(string(data), "\x00\n"), " (") // "profile (enforce)"
	if has != want {
		return errs.New(errs.FailedPrecondition, "the restored process is confined by %q, and the specification wants %q: correct it, or name the label by --lsm-profile", has, want)
	}
	return nil
}

// abandon ends what a failed restore has left: CRIU kills its processes, but the first is our
// child, to be reaped.
func (r *restoring) abandon() {
	if r.console != nil {
		r.console.Close()
	}
	if r.pidfd == nil && r.pid > 0 {
		if fd, err := unix.PidfdOpen(r.pid, 0); err == nil {
			r.pidfd = os.NewFile(uintptr(fd), "pidfd")
		}
	}
	if r.pidfd == nil {
		return
	}
	defer r.pidfd.Close()
	// Whoever is not our child is not what CRIU has made for us.
	if _, err := pidfd.Reap(r.pidfd, false); errors.Is(err, pidfd.ErrRuns) {
		pidfd.Signal(r.pidfd, unix.SIGKILL)
		pidfd.Reap(r.pidfd, true)
	}
}
