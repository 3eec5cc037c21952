package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/criu"
)

var afterSaved = fault.New("container.checkpoint.saved")

// Images say where a checkpoint is, and how CRIU treats what a container shares with outside.
type Images struct {
	// CRIU is the binary: a path, or a name that is looked for in PATH.
	CRIU string
	// Dir is the directory of the images. Work, where it is not empty, is that of logs and
	// statistics.
	Dir, Work string
	// Cgroups is what CRIU does with control groups: soft, full, strict or ignore. "" is soft
	// where a container has made groups below its own, else ignore, and for a restore what the
	// checkpoint was made with. The container's own is made by a restore in any case, with the
	// limits of the specification.
	Cgroups string

	TCPEstablished, TCPClose bool
	ExtUnixSockets           bool
	ShellJob                 bool // what has its terminal from outside
	FileLocks                bool
	AutoDedup                bool
	LazyPages                bool
	LSMProfile, LSMContext   string
}

// CheckpointOptions say how a container is saved.
type CheckpointOptions struct {
	Images
	// Parent is a directory with an earlier PreDump, relative to Dir: only memory that was
	// written to since is saved.
	Parent string
	// LeaveRunning lets the container go on.
	LeaveRunning bool
	// PreDump saves memory alone, and lets the container go on.
	PreDump         bool
	TCPSkipInFlight bool
	LinkRemap       bool
	// PageServer and PagePort are where memory is sent, instead of to files.
	PageServer string
	PagePort   int
	// Status is written a zero byte once pages can be asked for (LazyPages).
	Status *os.File
}

// descriptors is the file beside the images that tells what the standard streams were.
const descriptors = "descriptors.json"

// Checkpoint saves a running container. Unless it is to go on, its processes have ended and
// it has been deleted when Checkpoint returns; on error it runs as before. What is wrong with CRIU or
// the kernel is errs.Unsupported.
//
// Signals do not end it half way: the processes would be left as CRIU has them.
func (c *Container) Checkpoint(ctx context.Context, o CheckpointOptions) (err error) {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	st, err := c.Status()
	if err != nil {
		return err
	}
	if st != Running && st != Paused {
		return errs.New(errs.FailedPrecondition, "container %s cannot be checkpointed: it is %s", c.rec.ID, st)
	}
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	if err := savable(spec); err != nil {
		return err
	}
	tool, err := o.open(ctx)
	if err != nil {
		return err
	}
	dump, err := c.dumpOptions(ctx, tool, &o)
	if err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.rec.ID, err)
	}
	defer dump.Images.Close()
	if dump.Work != nil {
		defer dump.Work.Close()
	}
	req := &criu.Request{Type: criu.Dump, Options: dump, Notify: func(n *criu.Notification) error {
		switch {
		case n.Script == "status-ready" && o.Status != nil:
			_, err := o.Status.Write([]byte{0})
			return errors.Join(err, o.Status.Close())
		case n.Script == "post-dump" && !o.LeaveRunning: // the container can still go on
			return writeManifest(o.Dir, o.Cgroups)
		}
		return nil
	}}
	if o.PreDump {
		req.Type = criu.PreDump
	} else if err := c.dumpOutside(spec, dump); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.rec.ID, err)
	}
	ctx = context.WithoutCancel(ctx)
	if err := tool.Do(ctx, req); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.rec.ID, o.explain(err, dump.LogFile))
	}
	if o.LeaveRunning || o.PreDump {
		return writeManifest(o.Dir, o.Cgroups)
	}
	afterSaved.Hit()
	if !o.TCPEstablished { // else others' packets would be answered by a reset, and the connections be lost
		if err := unlockNetwork(spec); err != nil {
			c.store.o.Log.Warn("the network stays locked", "container", c.rec.ID, "error", err)
		}
	}
	return c.remove(ctx)
}

// open finds CRIU, and refuses what it cannot do before anything is touched.
func (i *Images) open(ctx context.Context) (*criu.CRIU, error) {
	if os.Geteuid() != 0 {
		return nil, errs.New(errs.PermissionDenied, "checkpoint and restore need root: CRIU does")
	}
	if _, err := i.mode(); i.Cgroups != "" && err != nil {
		return nil, err
	}
	tool, err := criu.Open(ctx, i.CRIU)
	if err != nil {
		return nil, err
	}
	if i.LSMProfile+i.LSMContext != "" && tool.Version() < criu.LSM {
		return nil, errs.New(errs.Unsupported, "--lsm-profile and --lsm-mount-context need CRIU %s, and this one is %s", criu.LSM, tool.Version())
	}
	return tool, nil
}

func (i *Images) mode() (criu.CgroupMode, error) {
	switch i.Cgroups {
	case "soft":
		return criu.CgroupsSoft, nil
	case "full":
		return criu.CgroupsFull, nil
	case "strict":
		return criu.CgroupsStrict, nil
	case "ignore":
		return criu.CgroupsIgnore, nil
	}
	return 0, errs.New(errs.Invalid, "manage-cgroups-mode %q: use soft, full, strict or ignore", i.Cgroups)
}

// options are those that saving and restoring have in common.
func (i *Images) options(log string) (o *criu.Options, err error) {
	o = &criu.Options{
		LogFile: log, TCPEstablished: i.TCPEstablished, TCPClose: i.TCPClose, ExtUnixSockets: i.ExtUnixSockets, ShellJob: i.ShellJob,
		FileLocks: i.FileLocks, AutoDedup: i.AutoDedup, LazyPages: i.LazyPages, LSMProfile: i.LSMProfile, LSMContext: i.LSMContext,
		OrphanPtsMaster: true,
		// Interfaces are whoever's that made them, as at a create.
		EmptyNamespaces: unix.CLONE_NEWNET,
	}
	o.Cgroups, err = i.mode()
	return o, err
}

// openDirs opens the directories, which are to be closed.
func (i *Images) openDirs(o *criu.Options) (err error) {
	if o.Images, err = os.Open(i.Dir); err != nil {
		return fmt.Errorf("open the images: %w", err)
	}
	if i.Work != "" {
		if err = os.MkdirAll(i.Work, 0o700); err == nil {
			o.Work, err = os.Open(i.Work)
		}
		if err != nil {
			o.Images.Close()
			return fmt.Errorf("open the work directory: %w", err)
		}
	}
	return nil
}

// explain adds to an error what CRIU's log tells of it.
func (i *Images) explain(err error, log string) error {
	dir := i.Dir
	if i.Work != "" {
		dir = i.Work
	}
	return criu.Explain(err, filepath.Join(dir, log))
}

// dumpOptions are those of a request to save the container.
func (c *Container) dumpOptions(ctx context.Context, tool *criu.CRIU, o *CheckpointOptions) (_ *criu.Options, err error) {
	want := criu.Features{MemoryTracking: o.PreDump || o.Parent != "", LazyPages: o.LazyPages}
	if want != (criu.Features{}) {
		have, err := tool.Features(ctx, want)
		if err != nil {
			return nil, err
		}
		if want.MemoryTracking && !have.MemoryTracking {
			return nil, errs.New(errs.Unsupported, "this kernel does not tell which memory was written to (CONFIG_MEM_SOFT_DIRTY), so there is no pre-dump and no parent")
		}
		if want.LazyPages && !have.LazyPages {
			return nil, errs.New(errs.Unsupported, "this kernel cannot fetch pages lazily (userfaultfd)")
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of the images: %w", err)
	}
	// That of an earlier checkpoint says nothing of this one.
	if err := os.Remove(filepath.Join(o.Dir, manifestName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if o.Parent != "" {
		if filepath.IsAbs(o.Parent) {
			return nil, errs.New(errs.Invalid, "--parent-path %s: it must be relative, to the directory of the images", o.Parent)
		}
		if st, err := os.Stat(filepath.Join(o.Dir, o.Parent)); err != nil {
			return nil, errs.New(errs.NotFound, "invalid --parent-path: %w", err)
		} else if !st.IsDir() {
			return nil, errs.New(errs.Invalid, "invalid --parent-path: %s is not a directory", o.Parent)
		}
	}
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	if err := c.strangers(g); err != nil {
		return nil, err
	}
	if o.Cgroups == "" {
		// CRIU looks at groups by mounting their filesystem again, which on cgroup v2 takes options
		// away from the host's own (nsdelegate, memory_recursiveprot): only where it has to.
		o.Cgroups = "ignore"
		if g != nil && hasGroupsBelow(g) {
			o.Cgroups = "soft"
		}
	}
	d, err := o.options("dump.log")
	if err == nil {
		err = o.openDirs(d)
	}
	if err != nil {
		return nil, err
	}
	d.PID, d.LeaveRunning = c.rec.PID, o.LeaveRunning
	d.ParentImages, d.TrackMemory = o.Parent, want.MemoryTracking
	d.TCPSkipInFlight, d.LinkRemap = o.TCPSkipInFlight, o.LinkRemap
	d.PageServer, d.PagePort = o.PageServer, o.PagePort
	if g != nil {
		dirs := g.Dirs()
		if d.FreezeCgroup = dirs["freezer"]; d.FreezeCgroup == "" && len(dirs) == 1 {
			d.FreezeCgroup = dirs[""]
		}
	}
	return d, nil
}

// hasGroupsBelow tells whether processes of the group are in groups of its own making.
func hasGroupsBelow(g *cgroup.Group) bool {
	all, err := g.Procs()
	if err != nil {
		return false
	}
	for _, dir := range g.Dirs() {
		data, err := os.ReadFile(dir + "/cgroup.procs")
		if err == nil && len(strings.Fields(string(data))) < len(all) {
			return true
		}
	}
	return false
}

// strangers refuses processes that are in the container's group but do not descend from its
// first: those of exec. CRIU saves a tree.
func (c *Container) strangers(g *cgroup.Group) error {
	if g == nil {
		return nil
	}
	procs, err := g.Procs()
	if err != nil {
		return err
	}
	parents := map[int]int{}
	for _, pid := range procs {
		parents[pid] = parentOf(pid)
	}
	var others []string
	for _, pid := range procs {
		p := pid
		for p != c.rec.PID && parents[p] != 0 {
			p = parents[p]
		}
		if p != c.rec.PID && parents[pid] != 0 { // and has not ended
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			others = append(others, fmt.Sprintf("%d (%s)", pid, strings.TrimSpace(string(name))))
		}
	}
	if len(others) > 0 {
		return errs.New(errs.FailedPrecondition, "only what descends from the container's first process can be saved; end what was started by exec first: %s", strings.Join(others, ", "))
	}
	return nil
}

// parentOf returns the process's parent, 0 if it is gone.
func parentOf(pid int) int {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "PPid:"); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(v))
			return n
		}
	}
	return 0
}

// dumpOutside adds what CRIU has to leave out.
func (c *Container) dumpOutside(spec *specs.Spec, d *criu.Options) error {
	table, err := openMountTable(c.rec.PID)
	if err != nil {
		return err
	}
	defer table.close()
	if d.Mounts, err = table.external(spec); err != nil {
		return err
	}
	for _, n := range externalNamespaces {
		p, err := joined(spec, n.kind, n.file)
		if err != nil {
			return err
		}
		if p != "" {
			var st unix.Stat_t
			if err := unix.Stat(p, &st); err != nil {
				return fmt.Errorf("%s namespace %s: %w", n.kind, p, err)
			}
			d.External = append(d.External, fmt.Sprintf("%s[%d]:%s", n.file, st.Ino, n.name))
		}
	}
	var streams [3]string
	for fd := range streams {
		if streams[fd], err = stream(c.rec.PID, fd, table); err != nil {
			return err
		}
		if strings.HasPrefix(streams[fd], "file[") && !slices.Contains(d.External, streams[fd]) {
			d.External = append(d.External, streams[fd])
		}
	}
	data, err := json.Marshal(streams)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(d.Images.Name(), descriptors), data, 0o600); err != nil {
		return fmt.Errorf("write down the standard streams: %w", err)
	}
	return nil
}

// savedStreams reads what the standard streams of a checkpoint were.
func savedStreams(dir string) (streams []string, err error) {
	data, err := os.ReadFile(filepath.Join(dir, descriptors))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s has no checkpoint: %s is not there; --image-path names the directory of one", dir, descriptors)
	}
	if err == nil {
		err = json.Unmarshal(data, &streams)
	}
	if err != nil {
		return nil, errs.New(errs.Corrupt, "read what the standard streams were: %s/%s: %w", dir, descriptors, err)
	}
	return streams[:min(len(streams), 3)], nil
}
